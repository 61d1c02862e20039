"""Producing models of shapes that the shop does not have; isolated from it, because it has migrations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from django.db import connections, models
from django.db.models.functions import Lower
from django.test.utils import isolate_apps

from outboxd.contrib.django import OutboxProducingManager, OutboxProducingModel


class Live(OutboxProducingManager):
    """It leaves rows out."""

    def get_queryset(self) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset().filter(deleted=False)
        return rows


class Joined(OutboxProducingManager):
    """It joins, so that its rows cannot be locked."""

    def get_queryset(self) -> models.QuerySet[Any]:
        rows: models.QuerySet[Any] = super().get_queryset().select_related("boss")
        return rows


with isolate_apps("tests.integration.django.shop"):

    class Boss(models.Model):
        class Meta:
            app_label = "shop"

    class Soft(OutboxProducingModel):
        """Django itself uses the base manager, which may not leave rows out."""

        boss = models.ForeignKey(Boss, models.SET_NULL, null=True)
        slug = models.CharField(max_length=20)
        deleted = models.BooleanField(default=False)
        objects = Live()
        every = Joined()

        outbox_category, outbox_shard = "MEMBER", "shard"

        class Meta:
            app_label = "shop"
            base_manager_name = "every"

        def shard(self) -> int:
            return 1

        def outbox_payload(self) -> Any:
            return {"slug": self.slug, "deleted": self.deleted}

    class Computed(OutboxProducingModel):
        organization = models.BigIntegerField(default=1)
        first = models.CharField(max_length=20)
        slug = models.GeneratedField(
            expression=Lower("first"), output_field=models.CharField(max_length=20), db_persist=True
        )
        seen = models.IntegerField(default=0)
        document = models.JSONField(default=dict)

        outbox_category, outbox_shard, outbox_fields = "MEMBER", "organization", ("slug", "document")

        class Meta:
            app_label = "shop"

        def outbox_payload(self) -> Any:
            return {"slug": self.slug}

    class Moving(OutboxProducingModel):
        """It stands in an outbox with regions."""

        organization = models.BigIntegerField(default=1)
        region = models.CharField(max_length=9)
        slug = models.CharField(max_length=20)

        outbox_category, outbox_shard, outbox_fields = "MEMBER", "organization", ("slug",)

        class Meta:
            app_label = "shop"

        def outbox_region(self) -> str:
            return str(self.region)

    class Person(OutboxProducingModel):
        organization = models.BigIntegerField(default=1)
        name = models.CharField(max_length=20)
        seen = models.IntegerField(default=0)

        outbox_category, outbox_shard = "MEMBER", "organization"
        outbox_fields: ClassVar[Sequence[str]] = ("name",)

        class Meta:
            app_label = "shop"

        def outbox_payload(self) -> Any:
            return {"name": self.name}

    class Worker(Person):
        salary = models.IntegerField(default=0)

        outbox_category = "ACCOUNT"
        outbox_fields: ClassVar[Sequence[str]] = ("salary", "name")

        class Meta:
            app_label = "shop"

    class Foreman(Worker):
        rank = models.IntegerField(default=0)

        outbox_category = "TEAM"
        outbox_fields: ClassVar[Sequence[str]] = ()

        class Meta:
            app_label = "shop"


EVERY: list[type[models.Model]] = [Boss, Soft, Computed, Moving, Person, Worker, Foreman]


def create() -> None:
    """Make the tables."""
    with connections["default"].schema_editor() as editor:
        for model in EVERY:
            editor.create_model(model)
