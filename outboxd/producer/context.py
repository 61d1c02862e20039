"""
`outbox_context`: messages written in the transaction of the change they describe.

    begin -> the application's statements, save ... -> commit -> flush

Contexts nest. On the same connection an inner one is a savepoint of the outer one's transaction, and what it has
written is flushed when that has been committed. Which context is around is told by a context variable, so by task.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import time
from typing import TYPE_CHECKING, Any, Self

from outboxd import errors, log
from outboxd.deliver import is_delivering
from outboxd.producer import counts
from outboxd.producer.blocking import SyncOutbox, at_once
from outboxd.producer.draft import NewMessage
from outboxd.producer.portal import refuse_greenlets
from outboxd.producer.seat import Flushed

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping
    from types import TracebackType

    from outboxd.model import ShardKey
    from outboxd.producer.batch import Batch
    from outboxd.producer.flush import Unflushed
    from outboxd.producer.producer import Producer
    from outboxd.producer.transaction import Transaction

_log = log.get()
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
        default_flush: What holds where nobody says, neither here nor around.
    """

    def __init__(
        self,
        producer: Producer,
        transaction: Transaction | None,
        *,
        flush: bool | None,
        flush_timeout_s: float,
        default_flush: bool = False,
    ) -> None:
        self._producer = producer
        self._transaction = transaction
        self._asked = flush
        self._said = flush
        self._default = default_flush
        self._timeout_s = flush_timeout_s
        self._around: OutboxContext | None = None
        self._outer: OutboxContext | None = None
        self._joins = False
        self._token: contextvars.Token[OutboxContext | None] | None = None
        self._saved: list[Batch] = []
        self._deferred: list[tuple[Producer, list[Batch]]] = []
        self._is_open = False
        self._is_committed = False
        self.flush = False
        """Whether what is saved here is flushed after the commit."""

    async def __aenter__(self) -> Self:
        """Begin, or join the transaction of the context around on the same connection."""
        self._refuse_unless(is_sync=False)
        await self._enter()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None
    ) -> None:
        """Commit and flush; after an error roll back."""
        await self._exit(kind)

    def __enter__(self) -> SyncOutbox:
        """Begin, on a connection that blocks."""
        self._refuse_unless(is_sync=True)
        at_once(self._enter())
        return SyncOutbox(self)

    def __exit__(self, kind: type[BaseException] | None, exc: BaseException | None, _: TracebackType | None) -> None:
        """Commit and flush; after an error roll back."""
        at_once(self._exit(kind))

    def _refuse_unless(self, *, is_sync: bool) -> None:
        if self._transaction is not None and self._transaction.is_sync != is_sync:
            how, other = ("async with", "with") if is_sync else ("with", "async with")
            raise errors.OutboxContextError(f"this connection needs `{how} outbox_context(…)`, not `{other}`")

    async def _enter(self) -> None:
        if self._token is not None or self._saved:
            raise errors.OutboxContextError("an outbox_context can be entered once")
        self._around = around = _that_is_open(_around.get())
        self._outer = _on(self._transaction, around)
        self._joins = self._outer._joins if self._outer is not None else self._is_in_transaction()
        self.flush = self._is_flushed(around)
        self._refuse_what_cannot_be()
        if self.flush:
            self._producer.prepare()  # its errors are to come before anything is written
            if self._producer.can_flush and self._transaction is not None and self._transaction.is_sync:
                refuse_greenlets()
        if self._transaction is not None:
            await self._transaction.begin()
        self._is_open = True
        self._token = _around.set(self)

    def _is_flushed(self, around: OutboxContext | None) -> bool:
        """Choose: what is said here or around; else as around; else the default, where it can be."""
        if self._said is None and around is not None:
            self._said = around._said
        if self._said is not None:
            return self._said
        return (around is not None and around.flush) or (self._default and not self._is_left_open())

    def _is_left_open(self) -> bool:
        """Whether the transaction is committed by somebody else, who does not tell."""
        return self._transaction is not None and self._joins and self._transaction.after_commit is None

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
        if self.flush and self._is_left_open():
            raise errors.OutboxContextError(
                "flush=True inside an open transaction: nobody can tell when it is committed",
                hint="Let outbox_context open the outermost transaction, or say flush=False.",
            )
        if self._asked and self._outer is None and _with_transaction(self._around) is not None:
            raise errors.OutboxContextError(
                "flush=True on a second connection inside an open transaction: receivers would run before it ends",
                hint="Say it in the outermost outbox_context: what is written on both is flushed when that has ended.",
            )

    async def _exit(self, kind: type[BaseException] | None) -> None:
        assert self._token is not None
        with contextlib.suppress(ValueError):  # ended in another task or thread, as a generator may be
            _around.reset(self._token)
        self._is_open = False
        if self._transaction is None:
            return
        if kind is not None:
            self._defer_to_around(self._deferred)
            await self._transaction.rollback()
            return
        if self._saved and not self._transaction.lasts():
            with contextlib.suppress(Exception):
                await self._transaction.rollback()
            raise errors.OutboxContextError("the transaction of outbox_context was ended inside the block")
        if self._outer is not None:
            await self._commit(self._transaction)
            self._outer._saved += self._saved
            self._outer._deferred += self._deferred
            return
        await self._wake_and_commit(self._transaction)
        if self._is_committed and not (self._joins and self._transaction.after_commit):
            await self._finish([self])

    async def _wake_and_commit(self, transaction: Transaction) -> None:
        flushed = [batch for batch in self._saved if batch.flush]
        try:
            if flushed and not self._producer.can_flush:
                await self._producer.wake(transaction, flushed)
            elif flushed and transaction.after_commit is None:
                await self._producer.refuse_broken(transaction)  # else what was rolled back would look delivered
            if transaction.after_commit is not None:
                transaction.after_commit(self._hear_of_commit, self)
        except BaseException:
            await transaction.rollback()
            raise
        await self._commit(transaction)
        if transaction.after_commit is None:
            self._is_committed = True

    async def _commit(self, transaction: Transaction) -> None:
        try:
            await transaction.commit()
        except BaseException:
            with contextlib.suppress(Exception):  # most drivers have rolled back by now; SQLAlchemy's sessions have not
                await transaction.rollback()
            raise

    def _hear_of_commit(self, together: list[OutboxContext]) -> None:
        """Finish what was written in a transaction of the application's; nobody is there to be told of an error."""
        self._is_committed = True
        if self._joins:
            self._timeout_s = max((each._timeout_s for each in together), default=self._timeout_s)
            try:
                at_once(self._finish(together))
            except errors.OutboxFlushError as exc:
                _log.warning("flush.failed", error=str(exc), message_id=exc.message.id if exc.message else None)

    async def _finish(self, together: Iterable[OutboxContext]) -> None:
        """Count what is committed, and flush it, with that of contexts that were committed together."""
        for batch in self._saved:
            counts.save(batch.outbox.name, batch.categories)
        pending = []
        for context in together:
            assert context._transaction is not None
            await context._producer.note_database(context._transaction, context._saved)
            pending += [(context._producer, [batch for batch in context._saved if batch.flush]), *context._deferred]
        if self._defer_to_around(pending):
            return
        by_producer: dict[Producer, list[Batch]] = {}
        for producer, batches in pending:
            if producer.can_flush:
                by_producer.setdefault(producer, []).extend(batches)
        failed = [exc for producer in by_producer if (exc := await self._flush(producer, by_producer[producer]))]
        if failed:
            raise failed[0]

    def _defer_to_around(self, pending: list[tuple[Producer, list[Batch]]]) -> bool:
        """Leave the flush to a context on another connection that is open still: receivers wait for its end, too."""
        enclosing = _with_transaction(_that_is_open(self._around))
        if enclosing is not None:
            enclosing._deferred += pending
        return enclosing is not None

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
        if not self._transaction.lasts():
            raise errors.OutboxContextError("save in an outbox_context whose transaction was ended inside the block")
        ids, batches = await self._producer.write(self._transaction, list(messages), flush=self.flush)
        self._saved += batches
        return ids

    async def delivered(self, timeout_s: float) -> None:
        """
        Wait until what was written here is gone from the outbox: after the context, on the same connection.

        Raises:
            OutboxFlushError: Some of it is still there after *timeout_s* seconds; it will be delivered later.
            OutboxContextError: Nothing is committed yet, or the timeout is none.
        """
        transaction = self._transaction
        if transaction is None or self._token is None or self._is_open or transaction.is_open():
            raise errors.OutboxContextError("delivered() inside the transaction: nothing is committed yet")
        if not timeout_s >= 0:  # so that NaN is refused, too
            raise errors.OutboxContextError(f"timeout_s must be a number of seconds, not {timeout_s}")
        gives_up_at = time.monotonic() + timeout_s
        pause_s = FIRST_LOOK_S
        while (found := await self._producer.still_there(transaction, self._saved))[0]:
            rest_s = gives_up_at - time.monotonic()
            if rest_s <= 0:
                written = sum(len(batch.ids) for batch in self._saved)
                text = f"{found[0]} of {written} messages are not delivered after {timeout_s:g} s"
                raise errors.OutboxFlushError(text, found[1])
            await self._sleep(min(rest_s, pause_s * random.uniform(0.5, 1.5)))  # noqa: S311
            pause_s = min(2 * pause_s, LOOK_S_MAX)

    async def _sleep(self, seconds: float) -> None:
        if self._is_sync:
            time.sleep(seconds)  # noqa: ASYNC251  nobody else runs in this coroutine's thread
        else:
            await asyncio.sleep(seconds)

    @property
    def _is_sync(self) -> bool:
        return self._transaction is not None and self._transaction.is_sync

    async def _flush(self, producer: Producer, batches: list[Batch]) -> errors.OutboxFlushError | None:
        """Drain the shards that were written in; the first problem becomes the error."""
        shards: dict[tuple[int, ShardKey], Flushed] = {}
        for batch in batches:
            for shard, id_ in zip(batch.shards, batch.ids, strict=True):
                flushed = shards.get((batch.table.oid, shard))
                if flushed is None:
                    flushed = Flushed(
                        config=batch.outbox, table=batch.table, shard=shard, ids=[], database=batch.database
                    )
                    shards[batch.table.oid, shard] = flushed
                flushed.ids.append(id_)
        if not shards:
            return None
        try:
            problems = await self._drain(producer, list(shards.values()))
            producer.is_at_home |= not problems and not is_delivering.get()  # then every shard has been looked at
        except errors.PoolerError:
            producer.is_pooled = True
            assert self._transaction is not None
            await producer.wake(self._transaction, batches)
            return None
        except errors.OutboxdError as exc:
            first = producer.message_of(batches[0], batches[0].ids[0])
            error = errors.OutboxFlushError(f"{exc}; the daemon delivers later", first)
            error.__cause__ = exc
            return error
        return _error(producer, problems[0], batches) if problems else None

    async def _drain(self, producer: Producer, shards: list[Flushed]) -> list[Unflushed]:
        waits = not is_delivering.get()
        if self._is_sync:
            return producer.flush_blocking(shards, self._timeout_s, waits=waits)
        return await producer.flush(shards, self._timeout_s, waits=waits)


def _on(transaction: Transaction | None, around: OutboxContext | None) -> OutboxContext | None:
    """Find the context around whose transaction a new one on the same connection is nested in."""
    while around is not None and transaction is not None:
        if around._transaction is not None and around._transaction.subject is transaction.subject:
            return around
        around = around._around
    return None


def _that_is_open(around: OutboxContext | None) -> OutboxContext | None:
    """Pass over contexts that have ended: a task that was begun inside of one outlives it, and bears it still."""
    while around is not None and not around._is_open:
        around = around._around
    return around


def _error(producer: Producer, problem: Unflushed, batches: list[Batch]) -> errors.OutboxFlushError:
    message = problem.message
    if message is None:
        flushed = problem.flushed
        own = next(b for b in batches if b.table.oid == flushed.table.oid and flushed.ids[0] in b.ids)
        message = producer.message_of(own, flushed.ids[0])
    return errors.OutboxFlushError(problem.error, message)


def is_inside() -> bool:
    """Whether a transaction of ours is open around."""
    return _with_transaction(_that_is_open(_around.get())) is not None


def _with_transaction(around: OutboxContext | None) -> OutboxContext | None:
    """Find the nearest context around that has a transaction."""
    while around is not None and around._transaction is None:
        around = around._around
    return around
