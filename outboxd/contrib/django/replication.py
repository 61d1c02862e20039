"""Receivers that hand over rows instead of messages."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from django.db import router

from outboxd.contrib.django import messages, receiver

if TYPE_CHECKING:
    from outboxd.contrib.django.models import OutboxProducingModel
    from outboxd.model import Message


def replicating(model: type[OutboxProducingModel], *, using: str | None = None) -> Callable[[Message], Any]:
    """
    Make a receiver of a model's category; give it a name in a receiver module.

        replicate_member = replicating(Member)

    It reads the row that a message is about. Where there is one, `handle_async_replication` is called on it, else
    `handle_async_deletion`: so the order of messages and how many of them were coalesced do not matter. Either may be
    `async def`: what it does with Django's database is then done in the receiver's thread.

    Args:
        model: Its messages are those that it writes itself, or that triggers write with its primary key.
        using: The database that is read; None: the one that the model is written in, because a replica may be behind.
    """

    def replicate(message: Message) -> Any:
        rows = messages.stored(model, using or router.db_for_write(model))
        row: OutboxProducingModel | None = rows.filter(pk=message.object_identifier).first()
        if row is None:
            return model.handle_async_deletion(message.object_identifier, message)
        return row.handle_async_replication(message)

    replicate.__module__ = model.__module__
    replicate.__qualname__ = f"{model.__qualname__}.replicating"
    return receiver(model.outbox_category)(replicate)
