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

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from django.db import models, router
from django.db.models.signals import class_prepared, pre_delete

from outboxd.contrib.django import messages, writing
from outboxd.contrib.django.querysets import OutboxProducingManager

if TYPE_CHECKING:
    from outboxd.model import Message
    from outboxd.producer.draft import NewMessage


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

    def handle_async_replication(self, message: Message) -> Any:
        """
        Tell others how this row is now; called by what `replicating` makes, with the row as it stands in the database.

        It may come more than once for the same change. Whatever it raises has the message tried again. It may be
        `async def`.
        """
        raise NotImplementedError(f"{type(self).__qualname__} has no handle_async_replication")

    @classmethod
    def handle_async_deletion(cls, identifier: Any, message: Message) -> Any:
        """Tell others that there is no such row; *identifier* is what its primary key was. It may be `async def`."""
        raise NotImplementedError(f"{cls.__qualname__} has no handle_async_deletion")

    def save_base(
        self,
        raw: bool = False,
        force_insert: Any = False,
        force_update: bool = False,
        using: str | None = None,
        update_fields: Iterable[str] | None = None,
    ) -> None:
        """Write the row as Django does; what is to be flushed is, when all is done that belongs to it."""
        using = using or router.db_for_write(type(self), instance=self)
        with writing.together(type(self), using):
            super().save_base(raw, force_insert, force_update, using, update_fields)

    save_base.alters_data = True  # type: ignore[attr-defined]

    def _save_parents(
        self, cls: type[models.Model], using: str, update_fields: Any, force_insert: Any, updated_parents: Any = None
    ) -> Any:
        """Write the tables of parents; before the first, read the rows of those tables that have messages."""
        if updated_parents is None and cls._meta.parents:
            self._outbox_before = {each: self._before(each, using) for each in messages.producing(type(self))}
        return super()._save_parents(  # type: ignore[misc]
            cls, using, update_fields, force_insert, updated_parents
        )

    def _save_table(
        self,
        raw: bool = False,
        cls: Any = None,
        force_insert: bool = False,
        force_update: bool = False,
        using: Any = None,
        update_fields: Any = None,
    ) -> Any:
        """
        Write one table, and its message; whoever saves comes here, a loader of fixtures, too.

        The message is written before others hear of the row by `post_save`: else it would come behind those of their
        own changes, with a payload of before.
        """
        arguments = (raw, cls, force_insert, force_update, using, update_fields)
        is_own = cls is type(self)._meta.concrete_model
        model: Any = type(self) if is_own else cls
        is_touched = is_own or update_fields is None or messages.names_one_of(cls, update_fields)
        if not issubclass(model, OutboxProducingModel) or not is_touched:
            return super()._save_table(*arguments)  # type: ignore[misc]
        with writing.together(model, using):
            before = vars(self).get("_outbox_before", {})
            if is_own:
                vars(self).pop("_outbox_before", None)
            old = before[model] if model in before else None if force_insert else self._before(model, using)
            updated = super()._save_table(*arguments)  # type: ignore[misc]
            is_as_written = is_own and not (updated and update_fields) and not messages.is_computed(self)
            writing.write(model, using, self._told(model, using, old if updated else None, is_as_written))
        return updated

    def _told(self, model: Any, using: str, old: Any, is_as_written: bool) -> Iterator[NewMessage]:
        """Build the messages of this row in a model's table; it is read anew where it is not what is in memory."""
        new = self if is_as_written else messages.stored(model, using).get(pk=self._get_pk_val(model._meta))
        yield from messages.of_write(old, new)

    def _before(self, model: Any, using: str) -> OutboxProducingModel | None:
        """Read the row of a table as it is now: what this object was loaded with may be long out of date."""
        key = self._get_pk_val(model._meta)
        if key is None and model is not type(self):
            key = getattr(self, type(self)._meta.get_ancestor_link(model).attname)
        row: OutboxProducingModel | None = None
        if key is not None:
            row = messages.locked(model, using).filter(pk=key).first()
        return row

    def delete(self, using: str | None = None, keep_parents: bool = False) -> tuple[int, dict[str, int]]:
        """Delete the row, and what hangs on it, as Django does."""
        using = using or router.db_for_write(type(self), instance=self)
        with writing.deleting(type(self), using) as gathered:
            tables = [type(self)] if keep_parents else messages.producing(type(self))
            stored = [] if self.pk is None else [self._told_of_deletion(each, using) for each in tables]
            deleted = super().delete(using=using, keep_parents=keep_parents)
            told = {messages.address_of(new) for new in gathered}
            gathered[:0] = [new for new in stored if new is not None and messages.address_of(new) not in told]
        return deleted

    delete.alters_data = True  # type: ignore[attr-defined]

    def _told_of_deletion(self, model: Any, using: str) -> NewMessage | None:
        """Build the message of the row that is going to be deleted: this object may not know where it stands by now."""
        key = self._get_pk_val(model._meta)
        row = messages.stored(model, using).select_for_update().filter(pk=key).first()
        return None if row is None else messages.message_of(row, messages.place_of(row))


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
    """Hear of deletions of a producing model; by sender: other models shall keep their fast deletes."""
    if issubclass(sender, OutboxProducingModel):
        pre_delete.connect(writing.note_deletion, sender=sender)


class_prepared.connect(_prepare)
