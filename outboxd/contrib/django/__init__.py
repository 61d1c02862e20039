"""
Django: messages in the transaction of the change, by Django's own connections.

    INSTALLED_APPS = [..., "outboxd.contrib.django"]
    OUTBOXD_CONFIG = BASE_DIR / "outboxd.toml"      # or {"default": ..., "archive": ...}, one for each database

    with outbox_context(flush=True) as outbox:
        member.save()
        outbox.save("MEMBER_UPDATE", shard_identifier=member.organization_id, object_identifier=member.id)
"""

from __future__ import annotations

import functools
import inspect
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING, Any

from asgiref.sync import async_to_sync

from outboxd import registry

if TYPE_CHECKING:
    from outboxd.contrib.django.models import OutboxProducingModel
    from outboxd.contrib.django.querysets import OutboxProducingManager, OutboxProducingQuerySet
    from outboxd.contrib.django.replication import replicating
    from outboxd.model import Message
    from outboxd.producer.context import OutboxContext

__all__ = [
    "OutboxProducingManager",
    "OutboxProducingModel",
    "OutboxProducingQuerySet",
    "outbox_context",
    "receiver",
    "replicating",
]

_MODULES = {
    "OutboxProducingManager": "querysets",
    "OutboxProducingModel": "models",
    "OutboxProducingQuerySet": "querysets",
    "replicating": "replication",
}


def __getattr__(name: str) -> object:
    """Import models only when they are asked for: this package is imported before Django is ready for them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_MODULES[name]}"), name)


def outbox_context(
    using: str | None = None, *, flush: bool | None = None, flush_timeout_s: float | None = None
) -> OutboxContext:
    """
    Open a transaction, or a savepoint of the one that is open, that messages are written in; use it by `with`.

    As `outboxd.outbox_context(transaction.atomic(using))`. Inside a transaction of the application's the flush comes
    when Django has committed that; its failure is then a line in the log, because nobody is left to be told.

    Args:
        using: A database of the settings; None: the default one.
        flush: Deliver right after the commit; see `outboxd.outbox_context`.
        flush_timeout_s: How long the flush may take, in seconds; None: `[producer] flush_timeout_s`.
    """
    from django.db import transaction

    from outboxd import producer

    return producer.outbox_context(transaction.atomic(using=using), flush=flush, flush_timeout_s=flush_timeout_s)


def receiver(*categories: str) -> Callable[[Callable[[Message], Any]], Callable[[Message], Any]]:
    """
    Mark a plain function as a receiver, as `outboxd.receiver` does, that may use Django's database.

    It runs in a worker thread, where nothing but this would ever close the connections that it opens: as at the
    ends of a request, those that are broken or older than CONN_MAX_AGE are closed.
    """

    def mark(function: Callable[[Message], Any]) -> Callable[[Message], Any]:
        if inspect.iscoroutinefunction(function):
            raise TypeError(
                "a receiver that uses Django's database is a plain function: async ones have outboxd.receiver"
            )

        @functools.wraps(function)
        def call(message: Message) -> Any:
            _close_old_connections()
            try:
                return settled(function(message))
            finally:
                _close_old_connections()

        return registry.receiver(*categories)(call)

    return mark


def settled(result: Any) -> Any:
    """Return what a receiver has returned; of a coroutine, what that comes to: its queries are made in this thread."""
    return async_to_sync(_wait_for)(result) if inspect.isawaitable(result) else result


async def _wait_for(result: Awaitable[Any]) -> Any:
    return await result


def _close_old_connections() -> None:
    """Do what Django does at the ends of a request; but in a transaction, which is a test's, it would break that."""
    from django.db import connections

    for each in connections.all(initialized_only=True):
        if not each.in_atomic_block:
            each.close_if_unusable_or_obsolete()
