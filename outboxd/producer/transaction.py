"""What `outbox_context` needs of a connection, whichever driver it is of."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Protocol

from outboxd import errors

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    AtCommit = Callable[[list[Any]], None]
    AfterCommit = Callable[[AtCommit, Any], None]


class Transaction(Protocol):
    """
    A connection of the application, and the transaction that is opened on it.

    Attributes:
        subject: What tells one connection from another: contexts on the same one are nested transactions.
        is_sync: The driver blocks: none of the methods ever suspends.
    """

    subject: object
    is_sync: bool

    @property
    def after_commit(self) -> AfterCommit | None:
        """
        Have something done when what is written now has been committed by whoever opened the transaction.

        It is forgotten when that is rolled back. Takes what is to be done, and what about: the first is given the
        latter of all that were committed together, the others an empty list. None: the driver cannot tell.
        """

    def is_open(self) -> bool:
        """Whether the connection is in a transaction, ours or the application's."""

    def lasts(self) -> bool:
        """Whether what `begin` has begun is open still, and no later transaction."""

    async def begin(self) -> None:
        """Begin a transaction; inside of one, a savepoint."""

    async def commit(self) -> None:
        """Commit what was begun, or release the savepoint."""

    async def rollback(self) -> None:
        """Roll back what was begun."""

    async def fetch(self, statement: str, /, *args: Any) -> Sequence[Any]:
        """
        Run a statement with parameters `$1` …; its rows are read by column name.

        In the transaction where one is open; else it leaves none open.
        """

    async def fetchrow(self, statement: str, /, *args: Any) -> Any:
        """Return the first row; None when there is none."""


def transaction_on(connection: Any) -> Transaction:
    """
    Return what fits the connection.

    Raises:
        OutboxContextError: It is of no driver that we know.
    """
    packages = {each.__module__.partition(".")[0] for each in type(connection).__mro__}
    if "asyncpg" in packages and hasattr(connection, "is_in_transaction"):
        from outboxd.producer.on_asyncpg import AsyncpgTransaction

        return AsyncpgTransaction(connection)
    if "psycopg" in packages:
        from outboxd.producer import on_psycopg

        return on_psycopg.transaction_on(connection)
    if "sqlalchemy" in packages:
        from outboxd.producer import on_sqlalchemy

        return on_sqlalchemy.transaction_on(connection)
    if "django" in packages:
        from outboxd.producer import on_django

        return on_django.transaction_on(connection)
    raise unknown(connection)


def unknown(connection: object) -> errors.OutboxContextError:
    """Build the error for something that is no connection we know."""
    kind = f"{type(connection).__module__}.{type(connection).__qualname__}"
    return errors.OutboxContextError(
        f"outbox_context takes no {kind}",
        hint="Give it a connection of asyncpg or psycopg 3, a session or connection of SQLAlchemy 2, or Django's"
        " transaction.atomic().",
    )
