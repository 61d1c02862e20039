"""
Models whose changes have their messages in the same transaction.

    class Member(OutboxProducingModel):
        organization = models.ForeignKey(Organization, models.CASCADE)
        slug = models.SlugField()

        outbox_category = "MEMBER_UPDATE"
        outbox_shard = "organization"
        outbox_fields = ["slug"]
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models, router
from django.db.models.signals import class_prepared, post_save, pre_delete

from outboxd.contrib.django import messages
from outboxd.contrib.django.querysets import OutboxProducingManager

if TYPE_CHECKING:
    from outboxd.model import Message


class OutboxProducingModel(models.Model):
    """
    An abstract model; `save`, `delete`, cascades, and what its manager does to many rows write messages.

    Attributes:
        outbox_category: Name of a configured category.
        outbox_shard: The field that is the shard identifier (of a foreign key the identifier), or a method that returns
            it. When it changes, the old shard gets a message, too.
        outbox_fields: Of updates, only those of these fields count, and of the shard; none named: every one.
        default_flush: Deliver right after the commit, where no `outbox_context` around says whether to.
    """

    outbox_category: ClassVar[str]
    outbox_shard: ClassVar[str]
    outbox_fields: ClassVar[Sequence[str]] = ()
    default_flush: ClassVar[bool] = False

    objects = OutboxProducingManager()

    class Meta:
        """Django itself uses the base manager: for related rows, and where a cascade sets null."""

        abstract = True
        base_manager_name = "objects"

    def outbox_payload(self) -> Any:
        """Return the payload of this row's message, something that JSON can hold; None: no payload."""
        return None

    def outbox_region(self) -> str | None:
        """Return the region, where the outbox shards by region."""
        return None

    def handle_async_replication(self, message: Message) -> None:
        """
        Tell others how this row is now; called by what `replicating` makes, with the row as it stands in the database.

        It may come more than once for the same change. Whatever it raises has the message tried again.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no handle_async_replication")

    @classmethod
    def handle_async_deletion(cls, identifier: Any, message: Message) -> None:
        """Tell others that there is no such row; *identifier* is what its primary key was."""
        raise NotImplementedError(f"{cls.__qualname__} has no handle_async_deletion")

    def save_base(
        self,
        raw: bool = False,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Write the row as Django does, and its message; `save` comes here."""
        using = using or router.db_for_write(type(self), instance=self)
        with messages.context_of(type(self), using) as outbox:
            old = None if self.pk is None or force_insert else self._locked(using)
            super().save_base(
                raw=raw, force_insert=force_insert, force_update=force_update, using=using, update_fields=update_fields
            )
            new = self
            is_computed = any(hasattr(value, "resolve_expression") for value in vars(self).values())
            if is_computed or (update_fields is not None and old is not None):  # the row is not what is in memory
                new = type(self)._base_manager.using(using).get(pk=self.pk)
            outbox.save_many(messages.of_write(old, new))

    save_base.alters_data = True  # type: ignore[attr-defined]

    def delete(self, using: str | None = None, keep_parents: bool = False) -> tuple[int, dict[str, int]]:
        """Delete the row, and what hangs on it, as Django does."""
        using = using or router.db_for_write(type(self), instance=self)
        with messages.context_of(type(self), using) as outbox, messages.gathering(using) as gathered:
            row = None if self.pk is None else self._locked(using)
            if row is not None and messages.shard_of(row) != messages.shard_of(self):
                gathered.append(messages.message_of(row, messages.shard_of(row)))
            deleted = super().delete(using=using, keep_parents=keep_parents)
            outbox.save_many(gathered)
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]

    def _locked(self, using: str) -> OutboxProducingModel | None:
        """Read the row as it is now: what this object was loaded with may be long out of date."""
        row: OutboxProducingModel | None = (
            type(self)._base_manager.using(using).select_for_update().filter(pk=self.pk).first()
        )
        return row


class _NoRows(models.Manager[Any]):
    """It has none to give: `dumpdata` asks every model."""

    def get_queryset(self) -> models.QuerySet[Any]:
        return super().get_queryset().none()


class Outbox(models.Model):
    """What permissions are given for, and where the admin has its pages; there is no table of it."""

    objects = _NoRows()

    class Meta:
        """Looking is one permission, which Django names; to pause and resume is another."""

        managed = False
        base_manager_name = "objects"
        default_permissions = ("view",)
        permissions = (("change_pause", "Can pause and resume"),)
        verbose_name_plural = "outboxes"

    def __str__(self) -> str:
        return f"pause {self.pk}"


def _prepare(sender: type[models.Model], **_: Any) -> None:
    """Hear of deletions and fixtures of a producing model; by sender: other models shall keep their fast deletes."""
    if issubclass(sender, OutboxProducingModel):
        post_save.connect(messages.note_fixture, sender=sender)
        pre_delete.connect(messages.note_deletion, sender=sender)


class_prepared.connect(_prepare)
