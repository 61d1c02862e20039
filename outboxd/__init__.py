"""outboxd drains transactional outbox tables in PostgreSQL. These are its public names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outboxd.errors import (
    Discard,
    InvalidOutboxError,
    OutboxContextError,
    OutboxFlushError,
    OutboxRecursionLimitError,
    RetryLater,
)
from outboxd.model import Message
from outboxd.registry import receiver, replicates

if TYPE_CHECKING:
    from outboxd.diagnosis import get_shard_depths_descending, get_total_outbox_count
    from outboxd.producer import NewMessage, outbox_context

__all__ = [
    "Discard",
    "InvalidOutboxError",
    "Message",
    "NewMessage",
    "OutboxContextError",
    "OutboxFlushError",
    "OutboxRecursionLimitError",
    "RetryLater",
    "get_shard_depths_descending",
    "get_total_outbox_count",
    "outbox_context",
    "receiver",
    "replicates",
]

_MODULES = {
    "NewMessage": "producer",
    "get_shard_depths_descending": "diagnosis",
    "get_total_outbox_count": "diagnosis",
    "outbox_context": "producer",
}


def __getattr__(name: str) -> object:
    """Import what brings the database driver only when it is asked for: receivers do without."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"outboxd.{_MODULES[name]}"), name)
