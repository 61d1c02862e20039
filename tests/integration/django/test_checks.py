"""System checks: a producing model that would not produce is told of before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.db import models
from django.test import override_settings
from django.test.utils import isolate_apps

from outboxd.contrib.django import OutboxProducingManager, OutboxProducingModel, OutboxProducingQuerySet
from outboxd.contrib.django.checks import check_models
from tests.integration.django.shop.models import Member

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from django.apps.registry import Apps

    from tests.integration.django.conftest import Database


class Forgotten(models.Manager[Any]):
    """One that somebody has written without thinking of messages."""


class Named(OutboxProducingQuerySet):
    def named(self) -> Named:
        return self


@pytest.fixture
def isolated() -> Iterator[Apps]:
    with isolate_apps("tests.integration.django.shop") as registry:
        assert registry is not None
        yield registry


def found(registry: Apps) -> list[tuple[str | None, str]]:
    return [(each.id, each.msg) for each in check_models([registry.get_app_config("shop")])]


def test_the_project_is_right(db: Database) -> None:
    assert check_models(None) == check_models([apps.get_app_config("shop")]) == []


def test_a_manager_that_does_not_write(db: Database, isolated: Apps) -> None:
    class Wrong(OutboxProducingModel):
        outbox_category, outbox_shard = "TEAM", "pk"
        objects = Forgotten()  # type: ignore[assignment]

        class Meta:
            app_label = "shop"

    class Right(OutboxProducingModel):
        outbox_category, outbox_shard = "TEAM", "pk"
        objects = OutboxProducingManager.from_queryset(Named)()

        class Meta:
            app_label = "shop"

    assert found(isolated) == [
        ("outboxd.E001", "the default manager, objects, does not write messages"),
        ("outboxd.E001", "the base manager, objects, does not write messages"),
    ]
    assert Right.objects.named().using("archive").model is Right


def test_names_that_nobody_knows(db: Database, isolated: Apps) -> None:
    class Misspelt(OutboxProducingModel):
        outbox_category, outbox_shard, outbox_fields = "MEMBR", "organisation", ("slug", "id")

        class Meta:
            app_label = "shop"

    class Empty(OutboxProducingModel):
        class Meta:
            app_label = "shop"

    assert sorted(map(str, found(isolated))) == sorted(
        map(
            str,
            [
                ("outboxd.E002", "outbox_category: there is no category MEMBR, did you mean MEMBER?"),
                ("outboxd.E004", "outbox_shard: there is no field or method organisation"),
                ("outboxd.E004", "outbox_fields: there is no field slug"),
                ("outboxd.E003", "outbox_category is missing"),
                ("outboxd.E003", "outbox_shard is missing"),
            ],
        )
    )
    assert (Misspelt.default_flush, Empty.outbox_fields) == (False, ())


def test_a_configuration_that_is_not_there(db: Database, tmp_path: Path) -> None:
    for given in ({}, tmp_path / "none.toml"):
        with override_settings(OUTBOXD_CONFIG=given):
            (problem,) = check_models(None)
        assert problem.id == "outboxd.E005"
    assert Member.objects.model is Member
