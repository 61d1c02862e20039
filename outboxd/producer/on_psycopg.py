"""`outbox_context` on psycopg 3, with and without an event loop."""

from __future__ import annotations

import re
from typing import Any

import psycopg
from psycopg.pq import TransactionStatus
from psycopg.rows import dict_row

from outboxd.producer.transaction import Transaction, unknown

_PARAMETER = re.compile(r"\$(\d+)")


def transaction_on(connection: Any) -> Transaction:
    """
    Return what fits the connection.

    Raises:
        OutboxContextError: It is something else of this package.
    """
    if isinstance(connection, psycopg.AsyncConnection):
        return AsyncPsycopgTransaction(connection)
    if isinstance(connection, psycopg.Connection):
        return PsycopgTransaction(connection)
    raise unknown(connection)


def as_psycopg(statement: str, args: tuple[Any, ...]) -> tuple[Any, dict[str, Any]]:
    """Write a statement's parameters as psycopg has them."""
    text = _PARAMETER.sub(r"%(p\1)s", statement.replace("%", "%%"))
    return text, {f"p{number}": value for number, value in enumerate(args, 1)}


def _is_open(connection: psycopg.Connection[Any] | psycopg.AsyncConnection[Any]) -> bool:
    return connection.info.transaction_status is not TransactionStatus.IDLE


class AsyncPsycopgTransaction:
    """See `Transaction`."""

    is_sync = False
    after_commit = None

    def __init__(self, connection: psycopg.AsyncConnection[Any]) -> None:
        self._connection = connection
        self._block = connection.transaction()
        self.subject: object = connection

    def is_open(self) -> bool:
        """Whether the connection is in a transaction."""
        return _is_open(self._connection)

    def lasts(self) -> bool:
        """Whether what was begun is open still."""
        return self.is_open()

    async def begin(self) -> None:
        """Begin a transaction, or a savepoint."""
        await self._block.__aenter__()

    async def commit(self) -> None:
        """Commit what was begun."""
        await self._block.__aexit__(None, None, None)

    async def rollback(self) -> None:
        """Roll back what was begun."""
        await self._block.__aexit__(psycopg.Rollback, psycopg.Rollback(), None)

    async def fetch(self, statement: str, /, *args: Any) -> list[dict[str, Any]]:
        """Run a statement."""
        was_open = self.is_open()
        async with psycopg.AsyncCursor(
            self._connection, row_factory=dict_row
        ) as cursor:  # whatever cursor_factory says
            rows = await (await cursor.execute(*as_psycopg(statement, args))).fetchall()
        if not was_open and self.is_open():
            await self._connection.commit()
        return rows

    async def fetchrow(self, statement: str, /, *args: Any) -> dict[str, Any] | None:
        """Return the first row."""
        return next(iter(await self.fetch(statement, *args)), None)


class PsycopgTransaction:
    """See `Transaction`."""

    is_sync = True
    after_commit = None

    def __init__(self, connection: psycopg.Connection[Any]) -> None:
        self._connection = connection
        self._block = connection.transaction()
        self.subject: object = connection

    def is_open(self) -> bool:
        """Whether the connection is in a transaction."""
        return _is_open(self._connection)

    def lasts(self) -> bool:
        """Whether what was begun is open still."""
        return self.is_open()

    async def begin(self) -> None:
        """Begin a transaction, or a savepoint."""
        self._block.__enter__()

    async def commit(self) -> None:
        """Commit what was begun."""
        self._block.__exit__(None, None, None)

    async def rollback(self) -> None:
        """Roll back what was begun."""
        self._block.__exit__(psycopg.Rollback, psycopg.Rollback(), None)

    async def fetch(self, statement: str, /, *args: Any) -> list[dict[str, Any]]:
        """Run a statement."""
        was_open = self.is_open()
        with psycopg.Cursor(self._connection, row_factory=dict_row) as cursor:  # whatever cursor_factory says
            rows = cursor.execute(*as_psycopg(statement, args)).fetchall()
        if not was_open and self.is_open():
            self._connection.commit()
        return rows

    async def fetchrow(self, statement: str, /, *args: Any) -> dict[str, Any] | None:
        """Return the first row."""
        return next(iter(await self.fetch(statement, *args)), None)
