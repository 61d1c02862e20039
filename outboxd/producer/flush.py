"""
Flush: drain the shards of what was just committed, in the process that wrote it.

    claim -> read -> coalesce -> deliver -> settle -> release        one shard after another, up to a bound

The claim is the daemon's own lock, so that nobody delivers a shard beside us (I3); reading, delivering and settling are
the daemon's own, too. All of it runs on one session, which is lent for one try at a time: who waits for a shard that
somebody else drains holds neither a connection nor a lock meanwhile.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import time
from typing import TYPE_CHECKING, NamedTuple

import anyio
import msgspec
import structlog

from outboxd import errors, held
from outboxd.deliver import Delivery, is_being_ended, take_back_cancellation
from outboxd.drain import Drain
from outboxd.lane import Lane
from outboxd.model import Candidate, Unsent
from outboxd.producer import counts
from outboxd.producer import seat as seats
from outboxd.producer.seat import Seat
from outboxd.settle import Settler
from outboxd.turn import ID, Turn, coalesce, keep_headers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Sequence

    import asyncpg

    from outboxd.claims import Claim
    from outboxd.config import Config
    from outboxd.live import Live
    from outboxd.meter import Meter
    from outboxd.model import Failed, Instant, KnownFailure, Message, ShardKey
    from outboxd.producer.seat import Flushed
    from outboxd.registry import Registry
    from outboxd.turn import Group

log = structlog.get_logger()

SETTLE_S_MAX = 5.0
"""How long a flush that was cut off still writes what it has delivered."""
IDLE_S_MAX = 30.0
"""A session that is not used for so long is closed."""
FIRST_PAUSE_S, PAUSE_S_MAX = 0.01, 0.5
"""Between two tries to win a shard."""


class Unflushed(msgspec.Struct, frozen=True):
    """Why something of a shard stays: the words, and the message where a receiver had it."""

    flushed: Flushed
    error: str
    message: Message | None = None


class Flusher:
    """
    Drains shards for one event loop.

    Args:
        config: Schema, outboxes and bounds.
        registry: The receivers of this process.
        dsn: Tells where to connect: directly, because the sessions hold locks.
    """

    def __init__(self, config: Config, registry: Registry, dsn: Callable[[], str]) -> None:
        self._config = config
        self._registry = registry
        self._dsn = dsn
        self._room = asyncio.Semaphore(config.producer.flush_connections)
        self._idle: list[Seat] = []
        self._janitor: asyncio.Task[None] | None = None

    async def flush(self, shards: Sequence[Flushed], timeout_s: float, *, waits: bool) -> list[Unflushed]:
        """
        Drain shards up to the newest message that each has now.

        Args:
            shards: One after another.
            timeout_s: For all of them.
            waits: Whether a shard that somebody else drains is waited for; else it is left to him. Nothing is to be
                waited for inside a receiver: flushes that write into each other's shards would wait for each other.

        Returns:
            What stays, and why; without what is switched off, or left to somebody else.

        Raises:
            PoolerError: The sessions would go through a pooler.
            OutboxdError: The database cannot be asked.
        """
        run = _Run(self, shards, timeout_s, waits=waits)
        task = asyncio.create_task(run.run())  # its own: whoever cancels us must not cut off the settling
        try:
            return await asyncio.shield(task)
        except asyncio.CancelledError:
            run.cancel()
            with anyio.CancelScope(shield=True), contextlib.suppress(errors.OutboxdError):
                await task
            raise

    @contextlib.asynccontextmanager
    async def seat(self) -> AsyncIterator[Seat]:
        """Lend a session."""
        async with self._room:
            seat = self._idle.pop() if self._idle else Seat(self._config, self._registry, self._dsn)
            try:
                yield seat
            finally:
                seat.lent_until = time.monotonic()
                self._idle.append(seat)
                if self._janitor is None or self._janitor.done():
                    self._janitor = asyncio.create_task(self._look_after_idle(), context=contextvars.Context())

    @property
    def is_full(self) -> bool:
        """Whether every session is lent."""
        return self._room.locked()

    def meter_of(self, flushed: Flushed) -> Meter:
        """Return what counts the deliveries of an outbox."""
        return counts.meter_of(flushed.config.name, self._config)

    async def _look_after_idle(self) -> None:
        """Close sessions that are not used any more; all of them, when the event loop ends, which cancels us."""
        try:
            while self._idle or self._room.locked():
                await asyncio.sleep(IDLE_S_MAX / 4)
                latest = time.monotonic() - IDLE_S_MAX
                for seat in [each for each in self._idle if each.lent_until < latest]:
                    self._idle.remove(seat)
                    await seat.close()
        finally:
            await self._close_idle()

    async def _close_idle(self) -> None:
        while self._idle:
            await self._idle.pop().close()

    async def close(self) -> None:
        """Close the sessions that are not lent."""
        if self._janitor is not None:
            self._janitor.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._janitor
        await self._close_idle()


class _Run:
    """One flush: shard after shard, until the time is up."""

    def __init__(self, flusher: Flusher, shards: Sequence[Flushed], timeout_s: float, *, waits: bool) -> None:
        self._scope, self._draining = anyio.CancelScope(), anyio.CancelScope()
        self._flusher = flusher
        self._shards = shards
        self._timeout_s = timeout_s
        self._late = f"the flush did not end within {timeout_s:g} s"
        self._waits = waits
        self._newest: dict[tuple[int, ShardKey], int] = {}
        """Of each shard, the newest message that was there at the start."""

    def cancel(self) -> None:
        """Deliver no more; what was delivered is settled."""
        self._scope.cancel()
        self._draining.cancel()

    async def run(self) -> list[Unflushed]:
        """Flush shard after shard; those that somebody else drains again and again, behind the others."""
        found: list[Unflushed] = []
        self._scope.deadline = anyio.current_time() + self._timeout_s
        pending, pause_s = list(self._shards), FIRST_PAUSE_S
        with self._scope:
            while pending:
                for flushed in list(pending):
                    ended = await self._try(flushed)
                    if ended is not None:
                        pending.remove(flushed)
                        found += ended
                if pending:
                    await asyncio.sleep(pause_s * random.uniform(0.5, 1.5))  # noqa: S311
                    pause_s = min(2 * pause_s, PAUSE_S_MAX)
        return found + [Unflushed(flushed, self._late) for flushed in pending]

    async def _try(self, flushed: Flushed) -> list[Unflushed] | None:
        """Drain a shard, if it can be won; None: it is to be tried again."""
        if not self._waits and self._flusher.is_full:
            return []
        async with self._flusher.seat() as seat:
            await seat.refuse_elsewhere(flushed)
            live = await seat.live()
            if seat.outbox_of(flushed).is_off(flushed.shard, live.switches):
                return []
            shard = (await seat.ask(flushed, "newest", flushed.ids, *flushed.shard))[0]
            if shard["due_at"] is None:  # nothing of ours is there any more
                return []
            newest = self._newest.setdefault((flushed.table.oid, flushed.shard), shard["id"])
            claim = await seat.claim(flushed.shard, shard["lock_key"])
            if claim is None:
                return None if self._waits else []
            return await self._drain(seat, flushed, claim, live, _Bound(newest, shard["due_at"]))

    async def _drain(self, seat: Seat, flushed: Flushed, claim: Claim, live: Live, bound: _Bound) -> list[Unflushed]:
        drain = _Drain(seat, flushed, claim, live, bound, self._flusher.meter_of(flushed))
        self._draining = anyio.CancelScope(deadline=self._scope.deadline)
        try:
            with anyio.CancelScope(shield=True):
                await drain.run(self._draining)
        finally:
            with anyio.move_on_after(SETTLE_S_MAX, shield=True):
                await seat.release(claim)
        if self._draining.cancelled_caught:
            drain.problems.append((self._late, None))
        if not drain.problems:
            return []
        with anyio.CancelScope(shield=True):
            left = {row["id"] for row in await seat.ask(flushed, "still_there", flushed.ids)}
        return [Unflushed(flushed, *drain.problem_of(left))] if left else []


class _Bound(NamedTuple):
    """How far a flush goes: to the newest message that was there; and the due time of what it is for."""

    newest: int
    due_at: Instant


Problem = tuple[str, "Message | None"]


class _Drain:
    """
    The drain of one claimed shard.

    Attributes:
        problems: What failed: its words, and the message where a receiver had it.
    """

    def __init__(self, seat: Seat, flushed: Flushed, claim: Claim, live: Live, bound: _Bound, meter: Meter) -> None:
        self.problems: list[Problem] = []
        self._seat = seat
        self._outbox = seat.outbox_of(flushed)
        self._claim = claim
        self._live = live
        self._bound = bound
        self._blocked = False
        live.on_failed = self._failed
        self._settler = Settler(self._outbox, live, on_settled=_nothing, on_room=_nothing, meter=meter)
        self._settler.gives_up = True
        discards = flushed.config.on_unhandled == "discard"
        sources = seat.sources_of(flushed)
        self._lane = Lane(self._outbox, self._settler, sources, discard_unhandled=discards, on_started=_nothing)
        self._turns = Drain(live, Delivery(live))

    def problem_of(self, left: set[int]) -> Problem:
        """Choose the problem that is about messages which are left; else the first."""
        own = (problem for problem in self.problems if problem[1] is not None and problem[1].id in left)
        return next(own, self.problems[0])

    async def run(self, scope: anyio.CancelScope) -> None:
        """Drain until nothing is left below the bound, the shard is blocked or off, or *scope* is cancelled."""
        async with anyio.create_task_group() as background:
            background.start_soon(self._settler.run)
            background.start_soon(self._keep_looking)
            with scope:
                await self._drain()
            with anyio.move_on_after(SETTLE_S_MAX):
                await self._settler.idle.wait()
            background.cancel_scope.cancel()
        if self._settler.error is not None:
            self.problems.append((str(self._settler.error), None))

    async def _drain(self) -> None:
        self._after_id: int | None = None
        while not self._blocked and self._settler.error is None and not self._is_off():
            try:
                if not await self._take_turn():
                    return
            except errors.OutboxdError as exc:
                self._block(str(exc))
            except asyncio.CancelledError:
                if is_being_ended():
                    raise
                # A receiver has cancelled its own task, which is ours, and returned before that took effect.
                take_back_cancellation()

    async def _take_turn(self) -> bool:
        """Read, deliver and settle; False when nothing is left to be read."""
        groups, last_id = await self._read(self._after_id)
        if last_id is None:
            return False
        if not groups:  # nothing but what is held
            self._after_id = last_id
            return True
        turn = Turn(self._claim, *self._outbox.identity_of(self._claim.shard), groups, 0, unfinished=False)
        await self._turns.drain_shard(self._lane, turn)
        await self._settler.idle.wait()
        if turn.interrupted or turn.unreadable:
            self._block("something could not be given to its receiver; the log says what")
        if not self._claim.session.alive:
            self._block("the connection was lost")
        return True

    async def _read(self, after_id: int | None) -> tuple[list[Group], int | None]:
        """Read the next groups, without what is held; and the last id that was looked at, None behind the last."""
        candidate = Candidate(self._claim.shard, self._claim.lock_key, self._bound.due_at, after_id)
        rows = await self._read_rows(candidate, failing_apart=True)
        failures: list[KnownFailure] = []
        if rows and rows[0][ID] is None:
            failures = (await self._outbox.read_failures([self._claim.shard]))[0]
            _, blocking = held.blocking(failures, self._live, self._live.drain.retry_on_new_message_s)
            if blocking is not None:
                self._block(f"the shard waits behind a failure: {blocking.last_error}")
                return [], None
            rows = await self._read_rows(candidate, failing_apart=False)
        rows = [row for row in rows if row[ID] is not None and row[ID] <= self._bound.newest]
        if not rows:
            return [], None
        groups = coalesce(rows, self._live.registry.apart)
        if self._turns.tracer is not None:
            keep_headers(groups, rows)
        groups, rest_s = held.set_apart(groups, failures, self._live)
        if rest_s > 0:
            self.problems.append(("an object waits for its next try", None))
        return groups, rows[-1][ID]

    async def _read_rows(self, candidate: Candidate, *, failing_apart: bool) -> list[asyncpg.Record]:
        rows_max = self._live.drain.turn_rows_max
        return await self._outbox.read_messages(
            [candidate],
            rows_per_shard=rows_max,
            rows_max=rows_max,
            categories_off=list(self._live.switches.categories),
            failing_apart=failing_apart,
        )

    async def _keep_looking(self) -> None:
        """Obey switches that are thrown while receivers run, and hear from the session that holds the lock."""
        while True:
            await asyncio.sleep(seats.SWITCHES_AGE_S_MAX)
            with contextlib.suppress(errors.OutboxdError):
                await self._seat.look(self._live)

    def _is_off(self) -> bool:
        return self._outbox.is_off(self._claim.shard, self._live.switches)

    def _failed(self, failed: Failed, message: Message | Unsent) -> None:
        if isinstance(message, Unsent):
            self._block(failed.error)
            return
        self.problems.append((failed.error, message))
        self._blocked |= self._live.blocks(message.category)

    def _block(self, error: str) -> None:
        self.problems.append((error, None))
        self._blocked = True


def _nothing(*_: object) -> None:
    pass
