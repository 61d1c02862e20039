"""What was written in one outbox by one statement, as long as somebody may ask for it."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outboxd.config import OutboxConfig
    from outboxd.inspection import Table
    from outboxd.model import ShardKey
    from outboxd.producer.draft import NewMessage


class Batch:
    """
    Messages of one outbox.

    Attributes:
        flush: Whether they are to be flushed. Only then `messages` and `shards` are kept, beside `ids`.
        categories: How many there are of each category.
        database: Where they were written, as the statement `database` says; None: where flushes are known to work.
    """

    __slots__ = ("categories", "database", "flush", "ids", "messages", "outbox", "shards", "table")

    def __init__(self, outbox: OutboxConfig, table: Table, flush: bool) -> None:
        self.outbox = outbox
        self.table = table
        self.flush = flush
        self.database: str | None = None
        self.ids: list[int] = []
        self.messages: list[NewMessage] = []
        self.shards: list[ShardKey] = []
        self.categories: Counter[str] = Counter()
