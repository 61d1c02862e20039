"""`outbox_context` on asyncpg: a connection, or one that a pool has lent."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import asyncpg


class AsyncpgTransaction:
    """See `Transaction`."""

    is_sync = False
    after_commit = None

    def __init__(self, connection: asyncpg.Connection) -> None:
        self._connection = connection
        self._transaction = connection.transaction()
        self.subject: object = getattr(connection, "_con", connection)  # what a pool lends is wrapped anew each time

    def is_open(self) -> bool:
        """Whether the connection is in a transaction."""
        return bool(self._connection.is_in_transaction())

    def lasts(self) -> bool:
        """Whether what was begun is open still."""
        return self.is_open()

    async def begin(self) -> None:
        """Begin a transaction, or a savepoint."""
        await self._transaction.start()

    async def commit(self) -> None:
        """Commit what was begun."""
        await self._transaction.commit()

    async def rollback(self) -> None:
        """Roll back what was begun."""
        await self._transaction.rollback()

    async def fetch(self, statement: str, /, *args: Any) -> list[asyncpg.Record]:
        """Run a statement."""
        rows: list[asyncpg.Record] = await self._connection.fetch(statement, *args)
        return rows

    async def fetchrow(self, statement: str, /, *args: Any) -> asyncpg.Record | None:
        """Return the first row."""
        return await self._connection.fetchrow(statement, *args)
