"""outboxd drains transactional outbox tables in PostgreSQL. These are its public names."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outboxd.errors import Discard, OutboxFlushError, OutboxRecursionLimitError, RetryLater
from outboxd.model import Message
from outboxd.registry import receiver

if TYPE_CHECKING:
    from outboxd.diagnosis import get_shard_depths_descending, get_total_outbox_count

__all__ = [
    "Discard",
    "Message",
    "OutboxFlushError",
    "OutboxRecursionLimitError",
    "RetryLater",
    "get_shard_depths_descending",
    "get_total_outbox_count",
    "receiver",
]

_DIAGNOSIS = ("get_shard_depths_descending", "get_total_outbox_count")


def __getattr__(name: str) -> object:
    """Import what brings the database driver only when it is asked for: producers and receivers do without."""
    if name not in _DIAGNOSIS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from outboxd import diagnosis

    return getattr(diagnosis, name)
