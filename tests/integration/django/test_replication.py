"""Rows instead of messages: what a model tells of itself."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import ThreadSensitiveContext, sync_to_async
from django.apps import apps
from django.db import connections, transaction

from outboxd import errors, producer
from outboxd.contrib.django import configuration, outbox_context, replicating
from outboxd.contrib.django.test import outbox_runner
from tests.integration.django.shop import receivers
from tests.integration.django.shop.models import Account, Team

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator
    from contextlib import AbstractContextManager

    from outboxd import Message
    from tests.integration.django.conftest import Database


def test_rows_that_are_there_and_rows_that_are_gone(db: Database) -> None:
    ada = Account.objects.create(slug="ada")
    assert Account.told == [(ada.pk, "ada", 1)]
    with outbox_context(flush=False):
        for slug in ("grace", "joan"):
            ada.slug = slug
            ada.save()
    with outbox_runner():
        Account.told.clear()
    assert Account.told == [(ada.pk, "joan", 2)]
    number = ada.pk
    ada.delete()
    assert Account.told[1:] == [(number, "ACCOUNT")]
    assert db.objects == []


@pytest.fixture
def late() -> Iterator[type[Account]]:
    """A model whose hooks are async."""

    class Late(Account):
        class Meta:
            app_label = "shop"
            proxy = True

        async def handle_async_replication(self, message: Message) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            self.told.append((self.pk, await Account.objects.acount()))

        @classmethod
        async def handle_async_deletion(cls, identifier: Any, message: Message) -> None:  # type: ignore[override]
            await asyncio.sleep(0)
            cls.told.append((identifier, await Account.objects.acount()))
            raise ValueError("once more")

    yield Late
    del apps.all_models["shop"]["late"]
    apps.clear_cache()


@pytest.mark.parametrize("around", [contextlib.nullcontext, transaction.atomic])
def test_hooks_that_are_async(
    db: Database, late: type[Account], around: Callable[[], AbstractContextManager[None]]
) -> None:
    with around():
        with outbox_context(flush=False), outbox_runner(receivers=[replicating(late)]):
            ada = Account.objects.create(slug="ada")
        number = ada.pk
        assert Account.told[1:] == [(number, 1)]
        failed = pytest.raises(errors.OutboxFlushError, match="once more")
        with failed, outbox_runner(receivers=[replicating(late)]), outbox_context(flush=False):
            ada.delete()
        assert Account.told[3:] == [(number, 0)]
    assert len(db.taken()) == 1


def test_async_hooks_in_a_flush_under_asgi(daemons_db: Database, late: type[Account]) -> None:
    async def serve() -> None:
        async with ThreadSensitiveContext():
            await sync_to_async(Account.objects.create)(slug="ada")
            await sync_to_async(connections.close_all)()

    producer.use(producer.Producer(configuration.load_of("default"), [replicating(late)]))
    try:
        asyncio.run(serve())
    finally:
        producer.default().close_blocking()
        producer.use(None)
    assert ([count for _, count in Account.told], daemons_db.objects) == ([1], [])


def test_what_is_read_is_what_is_there_now(db: Database) -> None:
    with outbox_context(flush=False):
        ada = Account.objects.create(slug="ada")
    db.rows("UPDATE shop_account SET slug = 'behind our back' RETURNING id")
    with outbox_runner():
        pass
    assert Account.told == [(ada.pk, "behind our back", 1)]


def test_another_database(db: Database, archive: Database) -> None:
    db.rows("INSERT INTO shop_account (id, slug) VALUES (7, 'here') RETURNING id")
    archive.rows("INSERT INTO shop_account (id, slug) VALUES (7, 'there') RETURNING id")
    there = replicating(Account, using="archive")
    with outbox_runner("archive", receivers=[there]), outbox_context("archive") as outbox:
        outbox.save("ACCOUNT", shard_identifier=7, object_identifier=7)
    assert [row[1] for row in Account.told] == ["here", "there"]


def test_a_model_that_says_nothing(db: Database) -> None:
    class Silent(Team):
        class Meta:
            app_label = "shop"
            proxy = True

    with outbox_context(flush=False):
        team = Team.objects.create()
    handed = "Silent has no handle_async_replication"
    with pytest.raises(errors.OutboxFlushError, match=handed), outbox_runner(receivers=[replicating(Silent)]):
        pass
    with pytest.raises(NotImplementedError, match="no handle_async_deletion"):
        Silent.handle_async_deletion(team.pk, receivers.seen[0])
    del apps.all_models["shop"]["silent"]
    apps.clear_cache()
