"""In which transaction the messages of producing models are written, and when."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction

from outboxd import producer
from outboxd.contrib.django import messages

if TYPE_CHECKING:
    from outboxd.contrib.django.models import OutboxProducingModel
    from outboxd.producer.context import OutboxContext
    from outboxd.producer.draft import NewMessage

_gathered: contextvars.ContextVar[tuple[str, list[NewMessage]] | None] = contextvars.ContextVar(
    "outboxd_gathered", default=None
)


@contextlib.contextmanager
def together(model: type[OutboxProducingModel], using: str) -> Iterator[None]:
    """
    Keep a change and its messages in one transaction, and flush them when the block has ended.

    Where a transaction is open already, nothing is to be done: what Django refuses before it has changed anything
    must not break that, because it does not without us.
    """
    if connections[using].in_atomic_block:
        yield
    else:
        with _context_of(model, using):
            yield


def write(model: type[OutboxProducingModel], using: str, new: Iterable[NewMessage]) -> None:
    """
    Write the messages of a change that has been made; what builds them is run here.

    No savepoint: when a message cannot be written, neither may the row be, so the transaction is as broken then as
    after an error of the database.
    """
    with _context_of(model, using) as outbox:
        outbox.save_many(new)


def _context_of(model: type[OutboxProducingModel], using: str) -> OutboxContext:
    atomic = transaction.atomic(using=using, savepoint=False)
    return producer.default(atomic).context(atomic, default_flush=model.default_flush)


@contextlib.contextmanager
def deleting(model: type[OutboxProducingModel], using: str) -> Iterator[list[NewMessage]]:
    """Collect the messages of what is deleted meanwhile, and write them by one statement."""
    gathered: list[NewMessage] = []
    with together(model, using):
        token = _gathered.set((using, gathered))
        try:
            yield gathered
        finally:
            _gathered.reset(token)
        if gathered:
            write(model, using, gathered)


def note_deletion(sender: type[OutboxProducingModel], instance: OutboxProducingModel, using: str, **_: Any) -> None:
    """Receive `pre_delete`, which comes for cascades, too: there nobody gathers, and a message is written at once."""
    message = messages.message_of(instance, messages.place_of(instance))
    around = _gathered.get()
    if around is not None and around[0] == using:
        around[1].append(message)
    else:
        write(sender, using, [message])
