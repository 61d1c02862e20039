from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models

from outboxd.contrib.django import OutboxProducingModel

if TYPE_CHECKING:
    from outboxd import Message


class Plain(models.Model):
    """A model that writes no messages by itself."""

    slug = models.CharField(max_length=20)

    class Meta:
        app_label = "shop"


class Organization(models.Model):
    members: Any
    teams: Any

    class Meta:
        app_label = "shop"


class Member(OutboxProducingModel):
    """Of its updates, those of the slug count."""

    organization = models.ForeignKey(Organization, models.CASCADE, related_name="members")
    organization_id: int
    slug = models.CharField(max_length=20)
    seen = models.IntegerField(default=0)

    outbox_category = "MEMBER"
    outbox_shard = "organization"
    outbox_fields = ("slug",)

    class Meta:
        app_label = "shop"

    def outbox_payload(self) -> Any:
        return {"slug": self.slug}


class Team(OutboxProducingModel):
    """It is flushed, and every update counts; the shard is computed."""

    number = models.IntegerField(default=0)
    organization = models.ForeignKey(Organization, models.SET_NULL, null=True, related_name="teams")

    outbox_category = "TEAM"
    outbox_shard = "shard"
    default_flush = True

    class Meta:
        app_label = "shop"

    def shard(self) -> int:
        return 100 + int(self.number)


class Account(OutboxProducingModel):
    """Its rows are told of by itself."""

    slug = models.CharField(max_length=20)

    outbox_category = "ACCOUNT"
    outbox_shard = "pk"
    default_flush = True
    told: ClassVar[list[tuple[Any, ...]]] = []

    class Meta:
        app_label = "shop"

    def handle_async_replication(self, message: Message) -> None:
        self.told.append((self.pk, self.slug, message.coalesced))

    @classmethod
    def handle_async_deletion(cls, identifier: Any, message: Message) -> None:
        cls.told.append((identifier, message.category_name))
