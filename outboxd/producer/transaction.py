"""What `outbox_context` needs of a connection, whichever driver it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from outboxd import errors

if TYPE_CHECKING:
    from collections.abc import Sequence


class Transaction(Protocol):
    """
    A connection of the application, and the transaction that is opened on it.

    `subject` is what tells one connection from another: contexts on the same one are nested transactions.
    """

    subject: object

    def is_open(self) -> bool:
        """Whether the connection is in a transaction, ours or the application's."""

    async def begin(self) -> None:
        """Begin a transaction; inside of one, a savepoint."""

    async def commit(self) -> None:
        """Commit what was begun, or release the savepoint."""

    async def rollback(self) -> None:
        """Roll back what was begun."""

    async def fetch(self, statement: str, /, *args: Any) -> Sequence[Any]:
        """Run a statement with parameters `$1` …; its rows are read by column name."""

    async def fetchrow(self, statement: str, /, *args: Any) -> Any:
        """Return the first row; None when there is none."""


def transaction_on(connection: Any) -> Transaction:
    """
    Return what fits the connection.

    Raises:
        OutboxContextError: It is of no driver that we know.
    """
    if _is_asyncpg(connection):
        from outboxd.producer.on_asyncpg import AsyncpgTransaction

        return AsyncpgTransaction(connection)
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    raise errors.OutboxContextError(
        f"outbox_context takes no {kind}", hint="Give it an asyncpg connection, also one that a pool has lent."
    )


def _is_asyncpg(connection: Any) -> bool:
    return any(each.__module__.partition(".")[0] == "asyncpg" for each in type(connection).__mro__)
