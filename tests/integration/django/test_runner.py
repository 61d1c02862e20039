"""`outbox_runner` inside Django's own test cases."""

from __future__ import annotations

import contextlib
import unittest
from typing import TYPE_CHECKING, Any

import pytest
from asgiref.sync import sync_to_async
from django.core import mail
from django.db import connection, transaction
from django.test import TestCase, TransactionTestCase, override_settings

from outboxd import Discard, Message, errors, receiver
from outboxd.contrib.django import configuration, outbox_context
from outboxd.contrib.django.test import outbox_runner
from tests.integration.django.conftest import CONFIG, Database, as_test
from tests.integration.django.shop import receivers
from tests.integration.django.shop.models import Organization, Plain, Team

if TYPE_CHECKING:
    from pathlib import Path


def save(obj: int = 1, category: str = "TEAM", **more: Any) -> None:
    with outbox_context() as outbox:
        outbox.save(category, shard_identifier=7, object_identifier=obj, **more)


class Both:
    """What holds in either kind of test case."""

    last = 5

    def test_receivers_run_at_the_end_of_the_block(self) -> None:
        with outbox_runner():
            row = Plain.objects.create(slug="ada")
            save(row.pk, payload={"a": 1}, headers={"b": 2})
            save(row.pk, payload={"a": 3})
            save(-1)
            assert receivers.seen == []
        first, second = receivers.seen
        assert (first.object_identifier, first.payload, first.coalesced, first.attempt) == (row.pk, {"a": 3}, 2, 1)
        assert (first.scope_name, first.scheduled_for.year) == ("ORGANIZATION_SCOPE", 2016)
        assert second.object_identifier == -1
        assert receivers.read == ["ada"]
        assert count() == 0

    def test_an_error_in_the_block_delivers_nothing(self) -> None:
        with contextlib.suppress(ZeroDivisionError), outbox_runner():
            save()
            raise ZeroDivisionError
        assert receivers.seen == []

    def test_a_failure_is_raised_with_its_message(self) -> None:
        receivers.broken.add(1)
        with pytest.raises(errors.OutboxFlushError, match="object 1 is broken") as caught, outbox_runner():
            save()
        assert caught.value.message is not None
        assert caught.value.message.object_identifier == 1
        assert count() == 1

    def test_nobody_wants_it(self) -> None:
        said = "no receiver is registered for category MEMBER"
        with pytest.raises(errors.OutboxFlushError, match=said), outbox_runner():
            save(category="MEMBER")

    def test_further_receivers(self) -> None:
        seen: list[Message] = []

        @receiver("MEMBER")
        async def late(message: Message) -> None:
            seen.append(message)
            raise Discard("enough")

        with outbox_runner(receivers=[late]):
            save(category="MEMBER")
        assert (len(seen), count()) == (1, 0)

    def test_messages_that_receivers_write(self) -> None:
        @receiver("MEMBER")
        def again(message: Message) -> None:
            if message.object_identifier < self.last:  # type: ignore[operator]
                save(message.object_identifier + 1, "MEMBER")  # type: ignore[operator]
            if not connection.in_atomic_block:
                connection.close()

        with outbox_runner(receivers=[again]):
            save(1, "MEMBER")
        assert count() == 0
        self.last = 1000
        with pytest.raises(errors.OutboxRecursionLimitError), outbox_runner(receivers=[again]):
            save(1, "MEMBER")

    async def test_async_tests(self) -> None:
        async with outbox_runner():
            row = await Plain.objects.acreate(slug="ada")
            await sync_to_async(save)(row.pk)
        assert (receivers.read, await sync_to_async(count)()) == (["ada"], 0)
        await self.decorated()
        assert receivers.objects()[1:] == [2]
        with pytest.raises(errors.OutboxContextError, match="in an async def"), outbox_runner():
            pass
        with contextlib.suppress(ZeroDivisionError):
            async with outbox_runner():
                await sync_to_async(save)(3)
                raise ZeroDivisionError
        assert len(receivers.seen) == 2

    @outbox_runner()
    async def decorated(self) -> None:
        await sync_to_async(save)(2)

    @outbox_runner()
    def test_decorated(self) -> None:
        save()
        assert receivers.seen == []


class InOneTransaction(Both, TestCase):
    __test__ = False  # run below, in a database that has the tables

    def test_models_and_their_flush(self) -> None:
        with outbox_runner():
            Team.objects.create(number=1)
            assert receivers.seen == []
        assert receivers.shards() == [101]

    def test_a_receiver_may_break_a_statement(self) -> None:
        @receiver("MEMBER")
        def breaking(_: Message) -> None:
            connection.cursor().execute("SELECT nothing")

        with pytest.raises(errors.OutboxFlushError), outbox_runner(receivers=[breaking]):
            save(category="MEMBER")
        assert count() == 1

    def test_a_category_that_nobody_knows(self) -> None:
        save()
        connection.cursor().execute("UPDATE outbox SET category = 999")
        with pytest.raises(errors.OutboxFlushError, match="no category with the number 999"), outbox_runner():
            pass


class WithCommits(Both, TransactionTestCase):
    __test__ = False

    def test_flush(self) -> None:
        Team.objects.create(number=1)
        assert receivers.shards() == [101]
        with transaction.atomic(), outbox_runner():
            Organization.objects.create()


def count() -> int:
    with connection.cursor() as cursor:
        cursor.execute("SELECT count(*) FROM outbox")
        (number,) = cursor.fetchone()
    return int(number)


class Fresh(unittest.TestResult):
    def startTest(self, test: unittest.TestCase) -> None:  # noqa: N802
        receivers.forget()
        super().startTest(test)


@pytest.mark.parametrize("case", [InOneTransaction, WithCommits])
def test_in_a_test_case(db: Database, case: type[unittest.TestCase], monkeypatch: pytest.MonkeyPatch) -> None:
    as_test(db, monkeypatch)
    result = Fresh()
    unittest.defaultTestLoader.loadTestsFromTestCase(case).run(result)
    assert [f"{test}: {text}" for test, text in [*result.errors, *result.failures]] == []
    assert result.testsRun == len([name for name in dir(case) if name.startswith("test_")])
    assert db.objects == []


def test_in_tests_the_database_is_django_s(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "elsewhere.toml"
    path.write_text(CONFIG.format(dsn="host=/nowhere dbname=elsewhere", modules=""))
    with override_settings(OUTBOXD_CONFIG=path):
        monkeypatch.setattr(mail, "outbox", [], raising=False)  # so does the e-mail backend `locmem`, in production
        assert "elsewhere" in configuration.load_of("default").config.dsn
        monkeypatch.setitem(configuration._names, "default", "shop")
        assert db.name in configuration.load_of("default").config.dsn
        monkeypatch.undo()
    path.write_text(CONFIG.format(dsn="", modules=""))
    with override_settings(OUTBOXD_CONFIG=path):
        assert db.name in configuration.load_of("default").config.dsn


def test_which_names_are_those_of_tests(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    given = connection.settings_dict
    for noted, of_tests, name, expected in (
        ("shop", None, "shop", False),
        ("shop", None, "test_shop", True),
        ("shop", None, "test_shop_2", True),
        ("shop", None, "test_other", True),  # tests may be given another name before Django makes theirs
        ("shop", None, "other", False),  # an application may lead a connection elsewhere itself
        ("test_shop", None, "test_shop", False),
        ("shop", "shop.1", "shop.1", True),
        ("shop", "shop.1", "shop.1_2", True),  # of the second process
        ("shop", "shop.1", "shop.1_eu", False),
        ("shop", "shop.1", "shop_1", False),
        ("shop", "shop", "shop", False),
    ):
        monkeypatch.setitem(configuration._names, "default", noted)
        monkeypatch.setitem(given, "NAME", name)
        monkeypatch.setitem(given["TEST"], "NAME", of_tests)
        assert configuration.is_test("default") == expected, (noted, of_tests, name)
        assert configuration.is_elsewhere("default") == (noted != name)
