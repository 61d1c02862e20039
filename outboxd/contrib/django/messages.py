"""What a row of a producing model says: the messages of one that was written or deleted."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from django.db import transaction

from outboxd import errors, producer
from outboxd.producer.context import is_inside
from outboxd.producer.draft import NewMessage

if TYPE_CHECKING:
    from django.db.models import Model

    from outboxd.contrib.django.models import OutboxProducingModel
    from outboxd.producer.context import OutboxContext

_gathered: contextvars.ContextVar[tuple[str, list[NewMessage]] | None] = contextvars.ContextVar(
    "outboxd_gathered", default=None
)


def context_of(model: type[OutboxProducingModel], using: str) -> OutboxContext:
    """
    Return the context that a model's rows are written in; `default_flush` holds where no other context is around.

    No savepoint: when the message cannot be written, neither may the row be, so the transaction is as broken as after
    an error of Django's own.
    """
    flush = None if is_inside() else model.default_flush
    return producer.outbox_context(transaction.atomic(using=using, savepoint=False), flush=flush)


def shard_of(row: OutboxProducingModel) -> Any:
    """Return the shard identifier: the value of a field, or what a method returns."""
    value = getattr(row, _attribute(type(row), row.outbox_shard))
    return value() if callable(value) else value


def message_of(row: OutboxProducingModel, shard: Any) -> NewMessage:
    """Build the message of a row, for one shard."""
    return NewMessage(
        category=row.outbox_category,
        shard_identifier=shard,
        object_identifier=row.pk,
        payload=row.outbox_payload(),
        region_name=row.outbox_region(),
    )


def of_write(old: OutboxProducingModel | None, new: OutboxProducingModel) -> list[NewMessage]:
    """Tell the shard of a row that it was written, and the one that it was in; nothing if no watched field differs."""
    shard = shard_of(new)
    if old is None:
        return [message_of(new, shard)]
    before = shard_of(old)
    watched = watched_by(type(new))
    if watched and before == shard and not any(getattr(old, name) != getattr(new, name) for name in watched):
        return []
    return [message_of(new, each) for each in dict.fromkeys([before, shard])]


def watched_by(model: type[OutboxProducingModel]) -> set[str]:
    """Return the attributes of the fields that count in an update; none: every update counts."""
    return {_attribute(model, name) for name in model.outbox_fields}


def may_matter(model: type[OutboxProducingModel], names: Iterable[str]) -> bool:
    """Whether an update of these fields may be one that counts."""
    watched = watched_by(model)
    if not watched or not is_field(model, model.outbox_shard):
        return True
    return bool((watched | {_attribute(model, model.outbox_shard)}) & {_attribute(model, name) for name in names})


def refuse_key(model: type[OutboxProducingModel], names: Iterable[str]) -> None:
    """
    Refuse to change what identifies a row.

    Raises:
        OutboxContextError: One of the fields is the primary key.
    """
    keys = {"pk", *(field.name for field in model._meta.pk_fields), *(f.attname for f in model._meta.pk_fields)}
    if keys & set(names):
        raise refused(model, "an update of the primary key", "which rows it made of which is not known")


def refused(model: type[Model], what: str, why: str) -> errors.OutboxContextError:
    """Build the error for what would pass by the messages."""
    return errors.OutboxContextError(
        f"{model._meta.label}: {what} cannot write its messages: {why}",
        hint=f'Let triggers write them: capture = true in the [[model]] of table "{model._meta.db_table}", with a plain'
        " models.Model.",
    )


def is_field(model: type[Model], name: str) -> bool:
    """Whether a name is that of a field, or of its column's attribute, or `pk`."""
    return name == "pk" or any(name in (field.name, field.attname) for field in model._meta.concrete_fields)


def _attribute(model: type[Model], name: str) -> str:
    """Return the attribute that holds the value of a field: of a foreign key the identifier, not the object."""
    for field in model._meta.concrete_fields:
        if name == field.name:
            return field.attname
    return name


@contextlib.contextmanager
def gathering(using: str) -> Iterator[list[NewMessage]]:
    """Collect what is deleted on a database meanwhile, so that one statement can write it."""
    gathered: list[NewMessage] = []
    token = _gathered.set((using, gathered))
    try:
        yield gathered
    finally:
        _gathered.reset(token)


def note_deletion(sender: type[OutboxProducingModel], instance: OutboxProducingModel, using: str, **_: Any) -> None:
    """Receive `pre_delete`, which comes for cascades, too: there nobody gathers, and a message is written at once."""
    message = message_of(instance, shard_of(instance))
    around = _gathered.get()
    if around is not None and around[0] == using:
        around[1].append(message)
        return
    with context_of(sender, using) as outbox:
        outbox.save_many([message])


def note_fixture(
    sender: type[OutboxProducingModel], instance: OutboxProducingModel, raw: bool, using: str, **_: Any
) -> None:
    """Receive `post_save`: a fixture is loaded past `save`, and past what a model makes of `save_base`."""
    if raw:
        with context_of(sender, using) as outbox:
            outbox.save_many(of_write(None, instance))
