"""
`outbox_context`: messages written in the transaction of the change they describe.

    begin -> the application's statements, save ... -> commit -> flush

Contexts nest. On the same connection an inner one is a savepoint of the outer one's transaction, and what it has
written is flushed when that has been committed. Which context is around is told by a context variable, so by task.
"""

from __future__ import annotations

import asyncio
import contextvars
import random
import time
from typing import TYPE_CHECKING, Any, Self

from outboxd import errors
from outboxd.producer.draft import NewMessage
from outboxd.producer.seat import Flushed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from outboxd.producer.flush import Unflushed
    from outboxd.producer.producer import Producer, Saved
    from outboxd.producer.transaction import Transaction

_around: contextvars.ContextVar[OutboxContext | None] = contextvars.ContextVar("outboxd_context", default=None)

FIRST_LOOK_S, LOOK_S_MAX = 0.005, 0.25
"""How often `delivered` looks, at first and at last."""


class OutboxContext:
    """
    A transaction that messages are written in. Made by `outbox_context`; used once.

    Args:
        producer: Writes and flushes.
        transaction: Of the connection; None: only `flush` is said, for the contexts inside.
        flush: None: as the context around says; False where there is none.
        flush_timeout_s: How long a flush may take, in seconds.
    """

    def __init__(
        self, producer: Producer, transaction: Transaction | None, *, flush: bool | None, flush_timeout_s: float
    ) -> None:
        self._producer = producer
        self._transaction = transaction
        self._asked = flush
        self._timeout_s = flush_timeout_s
        self._around: OutboxContext | None = None
        self._outer: OutboxContext | None = None
        self._joins = False
        self._token: contextvars.Token[OutboxContext | None] | None = None
        self._saved: list[Saved] = []
        self._deferred: list[Saved] = []
        self._is_open = False
        self.flush = False
        """Whether what is saved here is flushed after the commit."""

    async def __aenter__(self) -> Self:
        """Begin, or join the transaction of the context around on the same connection."""
        if self._token is not None or self._saved:
            raise errors.OutboxContextError("an outbox_context can be entered once")
        self._around = around = _around.get()
        self.flush = self._asked if self._asked is not None else around is not None and around.flush
        self._outer = _on(self._transaction, around)
        self._joins = self._outer._joins if self._outer is not None else self._is_in_transaction()
        self._refuse_what_cannot_be()
        if self.flush:
            self._producer.prepare()  # its errors are to come before anything is written
        if self._transaction is not None:
            await self._transaction.begin()
        self._is_open = True
        self._token = _around.set(self)
        return self

    def _is_in_transaction(self) -> bool:
        return self._transaction is not None and self._transaction.is_open()

    def _refuse_what_cannot_be(self) -> None:
        if self._transaction is None:
            if self._asked:
                raise errors.OutboxContextError(
                    "flush=True without a connection: there is no transaction to be committed",
                    hint="Give outbox_context the connection, or say flush=False.",
                )
            return
        if self.flush and self._joins:
            raise errors.OutboxContextError(
                "flush=True inside an open transaction: nobody can tell when it is committed",
                hint="Let outbox_context open the outermost transaction, or say flush=False.",
            )
        if self._asked and self._outer is None and _with_transaction(self._around) is not None:
            raise errors.OutboxContextError(
                "flush=True on a second connection inside an open transaction: receivers would run before it ends",
                hint="Say it in the outermost outbox_context: what is written on both is flushed when that has ended.",
            )

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        """Commit and flush; after an error roll back."""
        assert self._token is not None
        _around.reset(self._token)
        self._is_open = False
        if self._transaction is None:
            return
        if kind is not None:
            await self._transaction.rollback()
            return
        if self._outer is not None:
            await self._transaction.commit()
            self._outer._saved += self._saved
            self._outer._deferred += self._deferred
            return
        flushed = [saved for saved in self._saved if saved.flush]
        if flushed and not self._producer.can_flush:
            await self._producer.wake(self._transaction, flushed)
        await self._transaction.commit()
        self._producer.count(self._saved)
        enclosing = _with_transaction(self._around)
        if enclosing is not None:  # on another connection: receivers wait until that one has ended, too
            enclosing._deferred += flushed
        elif self._producer.can_flush:
            await self._flush(flushed + self._deferred)

    async def save(
        self,
        category: str,
        *,
        shard_identifier: Any,
        object_identifier: Any,
        payload: Any = None,
        region_name: str | None = None,
        headers: Mapping[str, Any] | None = None,
        outbox: str | None = None,
    ) -> int:
        """
        Write one message in the transaction; the arguments are those of `NewMessage`.

        Returns:
            Its id.

        Raises:
            InvalidOutboxError: It breaks a rule; nothing was written.
        """
        message = NewMessage(
            category=category,
            shard_identifier=shard_identifier,
            object_identifier=object_identifier,
            payload=payload,
            region_name=region_name,
            headers=headers,
            outbox=outbox,
        )
        return (await self.save_many([message]))[0]

    async def save_many(self, messages: Iterable[NewMessage]) -> list[int]:
        """
        Write messages in the transaction, by one statement for each outbox.

        Returns:
            Their ids, in the order given.

        Raises:
            InvalidOutboxError: One of them breaks a rule; none was written.
        """
        if self._transaction is None or not self._is_open:
            where = "without a connection" if self._transaction is None else "that has ended"
            raise errors.OutboxContextError(f"save in an outbox_context {where}")
        saved = await self._producer.write(self._transaction, list(messages), flush=self.flush)
        self._saved += saved
        return [each.id for each in saved]

    async def delivered(self, timeout_s: float) -> None:
        """
        Wait until what was written here is gone from the outbox: after the context, on the same connection.

        Raises:
            OutboxFlushError: Some of it is still there after *timeout_s* seconds; it will be delivered later.
            OutboxContextError: Nothing is committed yet.
        """
        transaction = self._transaction
        if transaction is None or self._token is None or self._is_open or transaction.is_open():
            raise errors.OutboxContextError("delivered() inside the transaction: nothing is committed yet")
        gives_up_at = time.monotonic() + timeout_s
        pause_s = FIRST_LOOK_S
        while left := await self._producer.still_there(transaction, self._saved):
            rest_s = gives_up_at - time.monotonic()
            if rest_s <= 0:
                raise errors.OutboxFlushError(
                    f"{len(left)} of {len(self._saved)} messages are not delivered after {timeout_s:g} s",
                    self._producer.message_of(left[0]),
                )
            await asyncio.sleep(min(rest_s, pause_s * random.uniform(0.5, 1.5)))  # noqa: S311
            pause_s = min(2 * pause_s, LOOK_S_MAX)

    async def _flush(self, saved: list[Saved]) -> None:
        """Drain the shards that were written in; the first problem becomes the error."""
        shards: dict[tuple[int, Any], Flushed] = {}
        for each in saved:
            flushed = shards.setdefault(
                (each.table.oid, each.shard),
                Flushed(config=each.route.outbox, table=each.table, shard=each.shard, ids=[]),
            )
            flushed.ids.append(each.id)
        if not shards:
            return
        try:
            problems = await self._producer.flusher().flush(list(shards.values()), self._timeout_s)
        except errors.PoolerError:
            self._producer.is_pooled = True
            assert self._transaction is not None
            await self._producer.wake(self._transaction, saved)
            return
        except errors.OutboxdError as exc:
            raise errors.OutboxFlushError(
                f"{exc}; the daemon delivers later", self._producer.message_of(saved[0])
            ) from exc
        if problems:
            raise self._error(problems[0], saved)

    def _error(self, problem: Unflushed, saved: list[Saved]) -> errors.OutboxFlushError:
        own = next(each for each in saved if each.id in problem.flushed.ids)
        return errors.OutboxFlushError(problem.error, problem.message or self._producer.message_of(own))


def _on(transaction: Transaction | None, around: OutboxContext | None) -> OutboxContext | None:
    """Find the context around whose transaction a new one on the same connection is nested in."""
    while around is not None and transaction is not None:
        if around._transaction is not None and around._transaction.subject is transaction.subject:
            return around
        around = around._around
    return None


def _with_transaction(around: OutboxContext | None) -> OutboxContext | None:
    """Find the nearest context around that has a transaction."""
    while around is not None and around._transaction is None:
        around = around._around
    return around
