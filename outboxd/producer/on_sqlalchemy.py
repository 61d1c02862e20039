"""`outbox_context` on SQLAlchemy 2: sessions and connections, with and without an event loop."""

from __future__ import annotations

import contextlib
import re
import uuid
from collections.abc import Sequence
from typing import Any

from sqlalchemy import Connection, TextClause, text
from sqlalchemy.exc import ResourceClosedError
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncSession
from sqlalchemy.orm import Session

from outboxd.producer.transaction import Transaction, unknown

# `:p1::int8[]` would be read as no parameter at all.
_TYPED = re.compile(r"\$(\d+)::((?:character varying|\w+)(?:\[\])?)")
_BARE = re.compile(r"\$(\d+)")


def transaction_on(connection: Any) -> Transaction:
    """
    Return what fits the session or connection.

    Raises:
        OutboxContextError: It is something else of this package, or the database is no PostgreSQL.
    """
    if isinstance(connection, (AsyncSession, AsyncConnection)):
        return AsyncSqlalchemyTransaction(connection)
    if isinstance(connection, (Session, Connection)):
        return SqlalchemyTransaction(connection)
    raise unknown(connection)


def _statement(statement: str, args: tuple[Any, ...]) -> tuple[TextClause, dict[str, Any]]:
    """Write a statement's parameters as SQLAlchemy has them; what else looks like one is escaped."""
    escaped = re.sub(r"(?<!:):(?=\w)", r"\\:", statement)
    written = _BARE.sub(r":p\1", _TYPED.sub(r"CAST(:p\1 AS \2)", escaped))
    return text(written), {f"p{number}": _plain(value) for number, value in enumerate(args, 1)}


def _plain(value: Any) -> Any:
    """Give UUIDs as texts: not every driver below takes them in a list."""
    if isinstance(value, (list, tuple)):
        return [_plain(each) for each in value]
    return str(value) if isinstance(value, uuid.UUID) else value


class AsyncSqlalchemyTransaction:
    """See `Transaction`."""

    is_sync = False
    after_commit = None

    def __init__(self, target: AsyncSession | AsyncConnection) -> None:
        self._target = target
        self._block: Any = None
        self.subject: object = target.sync_session if isinstance(target, AsyncSession) else target.sync_connection

    def is_open(self) -> bool:
        """Whether it is in a transaction."""
        return self._target.in_transaction()

    def lasts(self) -> bool:
        """Whether what was begun is open still."""
        return bool(self._block.is_active)

    async def begin(self) -> None:
        """Begin a transaction, or a savepoint."""
        self._block = self._target.begin_nested() if self.is_open() else self._target.begin()
        await self._block.start()

    async def commit(self) -> None:
        """Commit what was begun."""
        await self._block.commit()

    async def rollback(self) -> None:
        """Roll back what was begun."""
        if self.is_open():  # else it was ended inside the block
            with contextlib.suppress(ResourceClosedError):  # and another begun: the error that led here is what to see
                await self._block.rollback()

    async def fetch(self, statement: str, /, *args: Any) -> Sequence[Any]:
        """Run a statement."""
        was_open = self.is_open()
        rows = (await self._target.execute(*_statement(statement, args))).mappings().all()
        if not was_open and self.is_open():
            await self._target.commit()
        return rows

    async def fetchrow(self, statement: str, /, *args: Any) -> Any:
        """Return the first row."""
        return next(iter(await self.fetch(statement, *args)), None)


class SqlalchemyTransaction:
    """See `Transaction`."""

    is_sync = True
    after_commit = None

    def __init__(self, target: Session | Connection) -> None:
        self._target = target
        self._block: Any = None
        self.subject: object = target

    def is_open(self) -> bool:
        """Whether it is in a transaction."""
        return self._target.in_transaction()

    def lasts(self) -> bool:
        """Whether what was begun is open still."""
        return bool(self._block.is_active)

    async def begin(self) -> None:
        """Begin a transaction, or a savepoint."""
        self._block = self._target.begin_nested() if self.is_open() else self._target.begin()

    async def commit(self) -> None:
        """Commit what was begun."""
        self._block.commit()

    async def rollback(self) -> None:
        """Roll back what was begun."""
        if self.is_open():
            with contextlib.suppress(ResourceClosedError):  # as above
                self._block.rollback()

    async def fetch(self, statement: str, /, *args: Any) -> Sequence[Any]:
        """Run a statement."""
        was_open = self.is_open()
        rows = self._target.execute(*_statement(statement, args)).mappings().all()
        if not was_open and self.is_open():
            self._target.commit()
        return rows

    async def fetchrow(self, statement: str, /, *args: Any) -> Any:
        """Return the first row."""
        return next(iter(await self.fetch(statement, *args)), None)
