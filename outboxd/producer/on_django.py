"""
`outbox_context` on Django's connections, with psycopg 3.

Where Django has a transaction open already (ATOMIC_REQUESTS, an `atomic` of the application's), ours is a savepoint of
it, and Django tells us when it was committed: so a flush can wait for that.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

from django.db import connections, transaction
from django.db.transaction import Atomic
from psycopg.pq import TransactionStatus

from outboxd import errors
from outboxd.producer.on_psycopg import as_psycopg
from outboxd.producer.transaction import Transaction, unknown

if TYPE_CHECKING:
    from outboxd.producer.transaction import AfterCommit, AtCommit


def transaction_on(target: Any) -> Transaction:
    """
    Return what fits `transaction.atomic(…)` or a connection of `django.db`.

    Raises:
        OutboxContextError: It is something else of this package, or leads to another database or driver.
    """
    alias = alias_of(target)
    if alias is None:
        raise unknown(target)
    return DjangoTransaction(alias, target if isinstance(target, Atomic) else transaction.atomic(using=alias))


def alias_of(target: Any) -> str | None:
    """Tell which database of the settings something leads to; None when it is no way to one."""
    if isinstance(target, Atomic):
        return target.using or "default"
    alias = getattr(target, "alias", None)
    return alias if isinstance(alias, str) else None


class DjangoTransaction:
    """See `Transaction`. *alias* names a database of the settings; *block* is not entered yet."""

    is_sync = True

    def __init__(self, alias: str, block: Atomic) -> None:
        connection: Any = connections[alias]
        _refuse_other_drivers(alias, connection)
        self._connection = connection
        self._block = block
        self._is_entered = False
        self.subject: object = connection

    def is_open(self) -> bool:
        """Whether the connection is in a transaction; with autocommit off it always is."""
        if self._connection.in_atomic_block or self._is_manual:
            return True
        inner = self._connection.connection
        return inner is not None and not inner.closed and inner.info.transaction_status is not TransactionStatus.IDLE

    @property
    def _is_manual(self) -> bool:
        """Whether autocommit is off, so that `atomic` leaves the transaction open, for the application to commit."""
        connection = self._connection
        return not (connection.commit_on_exit if connection.in_atomic_block else connection.get_autocommit())

    @property
    def after_commit(self) -> AfterCommit | None:
        """What has something done at the commit; None with autocommit off: of such a commit Django does not tell."""
        return None if self._is_manual else self._on_commit

    def _on_commit(self, work: AtCommit, about: Any) -> None:
        """Add a hook; what it raises does not keep the application's own from running."""
        earlier = (hook for _, hook, _ in reversed(self._connection.run_on_commit) if isinstance(hook, _Hook))
        hook = _Hook(work, about, next((each.all for each in earlier), []))
        self._connection.on_commit(hook, robust=True)

    def lasts(self) -> bool:
        """Whether what was begun is open still."""
        return self.is_open()

    async def begin(self) -> None:
        """Begin a transaction, or a savepoint."""
        self._block.__enter__()
        self._is_entered = True

    async def commit(self) -> None:
        """Commit what was begun. Django rolls back instead, without a word, where an inner block has asked for it."""
        self._is_entered = False
        self._block.__exit__(None, None, None)

    async def rollback(self) -> None:
        """Roll back what was begun, unless its block has been left: a second time would be the block's around it."""
        if not self._is_entered:
            return
        self._is_entered = False
        self._block.__exit__(transaction.TransactionManagementError, transaction.TransactionManagementError(), None)

    async def fetch(self, statement: str, /, *args: Any) -> list[dict[str, Any]]:
        """Run a statement."""
        was_open = self.is_open()
        with self._connection.cursor() as cursor:
            cursor.execute(*as_psycopg(statement, args))
            names = [column.name for column in cursor.description]
            rows = [dict(zip(names, row, strict=True)) for row in cursor.fetchall()]
        if not was_open and self.is_open():
            self._connection.commit()
        return rows

    async def fetchrow(self, statement: str, /, *args: Any) -> dict[str, Any] | None:
        """Return the first row."""
        return next(iter(await self.fetch(statement, *args)), None)


class _Hook:
    """
    One of our hooks of a transaction; the first that is run does the work of all, so that there is one flush.

    Attributes:
        all: Those of the transaction. Weak, because Django forgets those of a savepoint that is rolled back.
    """

    def __init__(self, work: AtCommit, about: Any, together: list[weakref.ref[_Hook]]) -> None:
        self.__qualname__ = "outbox_context"  # Django writes it into its log
        self.all = together
        self._work = work
        self._about = about
        together.append(weakref.ref(self))

    def __call__(self) -> None:
        together = [hook._about for each in self.all if (hook := each()) is not None]
        self.all.clear()
        self._work(together)


def _refuse_other_drivers(alias: str, connection: Any) -> None:
    if connection.vendor != "postgresql":
        raise errors.OutboxContextError(f"database {alias} of the settings is {connection.vendor}, not PostgreSQL")
    from django.db.backends.postgresql.psycopg_any import is_psycopg3

    if not is_psycopg3:
        raise errors.OutboxContextError("Django runs on psycopg2 here", hint="Install psycopg 3: Django prefers it.")
