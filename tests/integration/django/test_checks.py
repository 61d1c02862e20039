"""System checks: a producing model that would not produce is told of before it is used."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.apps import apps
from django.db import models
from django.test import override_settings
from django.test.utils import isolate_apps

from outboxd.contrib.django import OutboxProducingManager, OutboxProducingModel, OutboxProducingQuerySet
from outboxd.contrib.django.checks import check_models, check_setting
from tests.integration.django.shop.models import Member, Plain

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

    from django.apps.registry import Apps

    from tests.integration.django.conftest import Database


class Forgotten(models.Manager[Any]):
    """One that somebody has written without thinking of messages."""


class Live(OutboxProducingManager):
    """One that leaves rows out."""

    def get_queryset(self) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset().filter(number=0)
        return rows


def custom(collector: Any, field: Any, rows: Any, _: str) -> None:
    collector.add_field_update(field, None, rows)


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
        outbox_category, outbox_shard = "ACCOUNT", "pk"
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


def test_a_base_manager_that_leaves_rows_out(db: Database, isolated: Apps) -> None:
    class Wrong(OutboxProducingModel):
        outbox_category, outbox_shard = "TEAM", "pk"
        number = models.IntegerField(default=0)
        objects = Live()

        class Meta:
            app_label = "shop"

    class Right(Wrong):
        outbox_category = "ACCOUNT"
        objects = Live()
        rows = OutboxProducingManager()

        class Meta:
            app_label = "shop"
            base_manager_name = "rows"

    said = "the base manager, objects, leaves rows out, and Django saves and deletes by it"
    assert found(isolated) == [("outboxd.E001", said)]
    assert Right._default_manager.name == "objects"


def test_on_delete_that_changes_rows_without_a_message(db: Database, isolated: Apps) -> None:
    class Row(OutboxProducingModel):
        outbox_category, outbox_shard = "TEAM", "pk"
        outbox_fields = ("null", "value", "default", "call", "custom", "cascade")
        null = models.ForeignKey(Plain, models.SET_NULL, null=True, related_name="+")
        value = models.ForeignKey(Plain, models.SET(None), null=True, related_name="+")
        cascade = models.ForeignKey(Plain, models.CASCADE, related_name="+")
        default = models.ForeignKey(Plain, models.SET_DEFAULT, default=None, null=True, related_name="+")
        call = models.ForeignKey(Plain, models.SET(lambda: None), null=True, related_name="+")
        custom = models.ForeignKey(Plain, custom, null=True, related_name="+")
        unwatched = models.ForeignKey(Plain, models.SET_DEFAULT, default=None, null=True, related_name="+")

        class Meta:
            app_label = "shop"

    said = [
        f"{what} changes rows without a message"
        for what in ("default: on_delete=SET_DEFAULT", "call: on_delete=SET of a callable", "custom: on_delete=custom")
    ]
    assert found(isolated) == [("outboxd.E007", text) for text in said]
    assert Row._meta.app_label == "shop"


def test_keys_that_the_outbox_does_not_take(db: Database, isolated: Apps) -> None:
    class Text(OutboxProducingModel):
        outbox_category, outbox_shard, outbox_fields = "TEAM", "parent", "code"
        code = models.CharField(max_length=9, primary_key=True)
        parent = models.ForeignKey("self", models.SET_NULL, null=True)

        class Meta:
            app_label = "shop"

    class Composite(OutboxProducingModel):
        outbox_category, outbox_shard = "ACCOUNT", "first"
        pk = models.CompositePrimaryKey("first", "second")
        first = models.IntegerField()
        second = models.IntegerField()

        class Meta:
            app_label = "shop"

    assert sorted(map(str, found(isolated))) == sorted(
        map(
            str,
            [
                ("outboxd.E003", "outbox_fields is a str"),
                ("outboxd.E006", "outbox_shard: parent may be null, and no shard is"),
                ("outboxd.W001", "code is varchar(9), and outbox region has key_type bigint"),
                ("outboxd.W001", "parent is varchar(9), and outbox region has key_type bigint"),
                ("outboxd.W001", "pk is no single column, and outbox region has key_type bigint"),
            ],
        )
    )
    assert (Text.default_flush, Composite.default_flush) == (False, False)


def test_tables_with_one_category(db: Database, isolated: Apps, tmp_path: Path) -> None:
    class Both(OutboxProducingModel):
        outbox_category, outbox_shard = "TEAM", "pk"

        class Meta:
            app_label = "shop"
            abstract = True

    class First(Both):
        class Meta:
            app_label = "shop"

    class Child(First):
        class Meta:
            app_label = "shop"

    class Proxy(Child):
        class Meta:
            app_label = "shop"
            proxy = True

    class Second(Both):
        class Meta:
            app_label = "shop"

    ((id_, text),) = found(isolated)
    assert (id_, text.partition(":")[2].partition(":")[0]) == ("outboxd.E008", " TEAM is also that of shop.First")
    path = tmp_path / "outboxd.toml"
    path.write_text(path.read_text().replace("[categories.TEAM]", "[categories.TEAM]\ncoalesce = false"))
    assert found(isolated) == []
    assert (Proxy.default_flush, Second.default_flush) == (False, False)


def test_a_configuration_that_is_not_there(db: Database, tmp_path: Path) -> None:
    for given in ({}, tmp_path / "none.toml"):
        with override_settings(OUTBOXD_CONFIG=given):
            (problem,) = check_models(None)
        assert problem.id == "outboxd.E005"
    assert Member.objects.model is Member


def test_a_setting_that_names_no_database_or_is_no_path(db: Database, tmp_path: Path) -> None:
    assert check_setting(None) == []
    for given, said in (
        (
            {"default": tmp_path, "archve": tmp_path},
            "OUTBOXD_CONFIG: there is no database archve, did you mean archive?",
        ),
        (5, "OUTBOXD_CONFIG must be a path, or a dict from database to path, got 5"),
        ({"default": b"x"}, "OUTBOXD_CONFIG must be a path, or a dict from database to path, got b'x'"),
    ):
        with override_settings(OUTBOXD_CONFIG=given):
            (problem,) = check_setting(None)
        assert (problem.id, problem.msg) == ("outboxd.E009", said)
