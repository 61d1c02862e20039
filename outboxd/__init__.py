"""outboxd drains transactional outbox tables in PostgreSQL. These are its public names."""

from outboxd.errors import Discard, OutboxFlushError, OutboxRecursionLimitError, RetryLater
from outboxd.model import Message
from outboxd.registry import receiver

__all__ = ["Discard", "Message", "OutboxFlushError", "OutboxRecursionLimitError", "RetryLater", "receiver"]
