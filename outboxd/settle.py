"""
The ending of deliveries: delete, reschedule, or bury. One settler an outbox.

While one batch is being written the next one gathers, so under load many shards are settled by one statement. A
settle that fails is tried again and is never a failed delivery: the messages were delivered, only their rows remain.
"""

from __future__ import annotations

import asyncio
import datetime as dt
import os
import socket
import time
from collections.abc import Awaitable, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import structlog

from outboxd import backoff, errors
from outboxd.ending import Delivered, Ending, Entry, Prepared, failure_of, ids_of_object, subject_of
from outboxd.model import DIED_ERROR, Buried, Failed, Instant, Untried, datetime_of
from outboxd.timing import observe
from outboxd.turn import CATEGORY, ID, OBJECT, SCHEDULED_FOR, Group, Turn

if TYPE_CHECKING:
    from outboxd.live import Live
    from outboxd.meter import Meter
    from outboxd.outbox import Failure, Outbox

log = structlog.get_logger()

UNSETTLED_ROWS_MAX = 20_000
BATCH_ROWS_MAX = 10_000
"""7 ms of the server."""
GATHER_S = 0.01
"""Under a light load a delete begins so long after the one before (ADR 0017): 2 000 rows/s are 100 commits, not 200."""
GATHER_ROWS_MAX = 200
FAILURES_MAX = 100
"""Failures that are written in one transaction (ADR 0019); each may move a thousand rows, 10 ms of the server."""
RETRY_PAUSE_S_MAX = 5.0
DEFER_S = 0.25
DEFER_S_MAX = 30.0
DEFERRALS_MAX = 4


class Settler:
    """
    Writes the endings of one outbox's deliveries.

    Args:
        outbox: Whose messages these are.
        live: How much one failure reschedules at most, and what is switched off.
        on_settled: Called with each turn that is over and has nothing unsettled.
        on_room: Called when there is room again after `is_full`.
        meter: Where to count.
    """

    def __init__(
        self,
        outbox: Outbox,
        live: Live,
        *,
        on_settled: Callable[[Turn], None],
        on_room: Callable[[], None],
        meter: Meter,
    ) -> None:
        self._outbox = outbox
        self._live = live
        self._on_settled = on_settled
        self._on_room = on_room
        self._pending: list[Entry] = []
        self._others: list[Ending] = []
        self._unsettled_rows = 0
        self._arrived = asyncio.Event()
        self._others_arrived = asyncio.Event()
        self._hurried = asyncio.Event()
        self._began_at = 0.0
        self.gives_up = False
        """In a bounded run: give up what the database refuses again and again, and keep the last `error`."""
        self.error: errors.OutboxdError | None = None
        self.refused = ""
        """The last error, while the database refuses to write what was delivered."""
        self.idle = asyncio.Event()
        self.idle.set()
        self.meter = meter
        self.settled_at = 0.0
        self._by = f"outboxd {os.getpid()}@{socket.gethostname()}"

    @property
    def is_full(self) -> bool:
        """Whether too much is unsettled: a database that does not delete must stop the deliveries (I10)."""
        return self._unsettled_rows > UNSETTLED_ROWS_MAX

    def hand_over(self, turn: Turn) -> None:
        """Take the groups that a turn has delivered so far, and look at the clock: a slice of its work is over."""
        groups = turn.delivered
        if not groups:
            return
        turn.delivered = []
        now, seconds = 0, 0.0
        if self.meter.timed:
            ended_at = time.monotonic()
            now, seconds, turn.slice_at = self.meter.now(), ended_at - turn.slice_at, ended_at
        first = groups[0].newest[CATEGORY]
        if len(groups) == 1 or {group.newest[CATEGORY] for group in groups} == {first}:
            self._hand_over(turn, first, groups, now, seconds)
            return
        by_category: dict[int, list[Group]] = {}
        for group in groups:
            by_category.setdefault(group.newest[CATEGORY], []).append(group)
        for category, own in by_category.items():
            self._hand_over(turn, category, own, now, seconds * len(own) / len(groups))

    def _hand_over(self, turn: Turn, category: int, groups: list[Group], now: Instant, seconds: float) -> None:
        calls = 0 if category in turn.unhandled else len(groups)
        ids = [i for group in groups for i in group.ids]
        self._put(Delivered(turn, category, groups, calls, ids, len(ids), now, seconds))

    def add(self, ending: Ending) -> None:
        """Take an ending, behind what the turn has delivered before it."""
        self.hand_over(ending.turn)
        self._put(ending)

    def _put(self, entry: Entry) -> None:
        entry.turn.unsettled += 1
        self._pending.append(entry)
        self._unsettled_rows += entry.row_count
        self.idle.clear()
        self._arrived.set()
        if self._unsettled_rows >= GATHER_ROWS_MAX or not isinstance(entry, Delivered) or entry.turn.committed:
            self.hurry()

    def finish(self, turn: Turn) -> None:
        """Say that a turn hands over nothing more."""
        self.hand_over(turn)
        turn.over = True
        if not turn.unsettled:
            self._on_settled(turn)
        elif turn.unfinished or turn.claim.again is not None:  # its shard goes on once this is committed
            self.hurry()

    def hurry(self) -> None:
        """Let what was handed over be written now: somebody waits for it."""
        self._hurried.set()

    async def run(self) -> None:
        """Write what arrives. Never returns."""
        async with anyio.create_task_group() as writers:
            writers.start_soon(self._run_others)
            while True:
                await self._arrived.wait()
                await self._gather()
                batch = self._take()
                if not self._pending:
                    self._hurried.clear()
                self._began_at = time.monotonic()
                await self._write_until_done(batch, self._delete)
                if not self._pending:
                    self._arrived.clear()

    async def _gather(self) -> None:
        """Let deletes share a commit, where nobody waits for them."""
        left_s = self._began_at + GATHER_S - time.monotonic()
        if left_s > 0 and not self.gives_up and not self._hurried.is_set():
            with anyio.move_on_after(left_s):
                await self._hurried.wait()

    async def _run_others(self) -> None:
        """Write failures and burials beside the deletes, on a session of their own: they cost ten times as much."""
        while True:
            await self._others_arrived.wait()
            self._others_arrived.clear()
            batch, self._others = self._others, []
            await self._write_until_done([*batch], self._write_others)

    async def prepare(self, turn: Turn, group: Group) -> Prepared | None:
        """
        Count a failure before the delivery (prepared mode), so that a death needs no witness (I9).

        Only the group's own messages are moved: a delivery costs no more than itself, however deep its shard. Should we
        die, the failure holds the rest of the shard.

        Returns:
            What was written; None when somebody else moved the messages meanwhile.
        """
        [delay] = await self._next_delays([group], [None])
        if delay is None:
            return None
        [(attempts, moved_to)] = await self._outbox.prepare_next_from_shards(
            [failure_of(turn, group, DIED_ERROR, delay, group.ids, None)],
            rows_max=self._live.drain.backoff_rows_max,
            categories_off=list(self._live.switches.categories),
        )
        if attempts is None:
            return None
        group.is_counted = True
        return Prepared(moved_to, delay)

    def _take(self) -> list[Entry]:
        rows = count = 0
        for entry in self._pending:
            rows += entry.row_count
            count += 1
            if rows >= BATCH_ROWS_MAX:
                break
        batch, self._pending = self._pending[:count], self._pending[count:]
        return batch

    async def _write_until_done(self, batch: list[Entry], write: Callable[[list[Entry]], Awaitable[None]]) -> None:
        """Try again while the database is away; set aside what it refuses, shard by shard."""
        failures = 0
        while batch:
            try:
                await write(batch)
            except errors.StoreUnavailable as exc:
                failures += 1
                self._live.beat()  # an attempt that ended in an error has ended, too
                log.warning("settle.retried", outbox=self._outbox.name, endings=len(batch), error=str(exc))
                await asyncio.sleep(min(RETRY_PAUSE_S_MAX, 0.05 * 2**failures))
            except Exception as exc:
                self._live.beat()
                await self._set_aside(batch, write, exc)
                return

    async def _set_aside(
        self, batch: list[Entry], write: Callable[[list[Entry]], Awaitable[None]], exc: Exception
    ) -> None:
        """Split a refused batch (a row is locked, say) by shard, so that one does not keep the others."""
        turns = {id(entry.turn) for entry in batch}
        if len(turns) > 1:
            for one in turns:
                await self._write_until_done([entry for entry in batch if id(entry.turn) == one], write)
            return
        turn = batch[0].turn
        turn.deferrals += 1
        self.refused = str(exc)
        hint = exc.hint or None if isinstance(exc, errors.OutboxdError) else None
        log.warning("settle.deferred", outbox=self._outbox.name, endings=len(batch), error=str(exc), hint=hint)
        if self.gives_up and turn.deferrals > DEFERRALS_MAX:
            self.error = exc if isinstance(exc, errors.OutboxdError) else errors.StatementFailed(str(exc))
            for entry in batch:
                entry.turn.interrupted = True  # or a bounded run would deliver it again
            self._settled(batch)
            return
        pause_s = min(DEFER_S_MAX, DEFER_S * 2**turn.deferrals)
        asyncio.get_running_loop().call_later(pause_s, self._resume, batch)

    def _resume(self, batch: list[Entry]) -> None:
        self._pending[:0] = batch
        self._arrived.set()

    async def _delete(self, batch: list[Entry]) -> None:
        """Delete what was delivered, and hand on the other endings: a shard's deletes go before its failure."""
        done = [entry for entry in batch if isinstance(entry, Delivered)]
        others = [entry for entry in batch if isinstance(entry, Ending)]
        if done:
            ids = [i for entry in done for i in entry.ids]
            known = [subject_of(e.turn, g) for e in done for g in e.groups if g.known is not None or g.is_counted]
            await self._outbox.delete_messages(ids, known)
            batch[:] = others  # what is committed is not set aside, whatever happens next
            for entry in done:
                entry.turn.rows_retired += entry.row_count
                tally = self.meter.of(entry.category)
                tally.delivered += entry.calls
                tally.retired += entry.row_count
            self._settled(done)
            self._live.beat()
            observe(self._outbox.name, self.meter, done)
        batch.clear()
        if others:
            self._others += others
            self._others_arrived.set()

    async def _write_others(self, batch: list[Entry]) -> None:
        """Write endings that are no deletes, taking out of the batch what is committed."""
        others = [entry for entry in batch if isinstance(entry, Ending)]
        failed = [ending for ending in others if isinstance(ending.outcome, Failed)]
        # What was refused before goes alone, or it would keep the others waiting for its lock again.
        failed.sort(key=lambda ending: ending.turn.deferrals)
        others = [ending for ending in others if not isinstance(ending.outcome, Failed)]
        while failed:
            size = 1 if failed[0].turn.deferrals else sum(not e.turn.deferrals for e in failed[:FAILURES_MAX])
            part, failed = failed[:size], failed[size:]
            await self._fail(part)
            batch[:] = [*failed, *others]
            self._settled(part)
            self._live.beat()
        for ending in others:
            await self._write_one(ending)
            batch.pop(0)
            self._settled([ending])
            self._live.beat()

    async def _write_one(self, ending: Ending) -> None:
        if isinstance(ending.outcome, Untried):
            if ending.prepared is not None:
                group = ending.group
                moved_to = ending.prepared.moved_to
                await self._outbox.undo_prepared(group.ids, ending.subject, group.known, moved_to=moved_to)
        elif isinstance(ending.outcome, Buried):
            await self._bury(ending, ending.outcome.reason)

    async def _fail(self, endings: list[Ending]) -> None:
        failures = await self._failures(endings)
        moved = iter(
            await self._outbox.prepare_next_from_shards(
                [failure for failure in failures if failure is not None],
                rows_max=self._live.drain.backoff_rows_max,
                categories_off=list(self._live.switches.categories),
            )
        )
        for ending, failure in zip(endings, failures, strict=True):
            # The message is gone, or somebody else has moved it.
            attempts, next_at = (None, ending.group.oldest[SCHEDULED_FOR]) if failure is None else next(moved)
            self.meter.of(ending.subject[1]).failures += attempts is not None
            log.warning(
                "shard.rescheduled" if attempts is not None else "shard.failure_superseded",
                **self._described(ending),
                attempts=attempts,
                next_at=datetime_of(next_at).isoformat(),
                error=_error(ending),
            )

    async def _bury(self, ending: Ending, reason: str) -> None:
        group = ending.group
        buried = await self._outbox.bury(group.ids, ending.subject, attempts=group.attempt, reason=reason, by=self._by)
        if not buried:  # somebody else moves or deletes them at this moment: they are read again
            return
        self.meter.of(ending.subject[1]).buried += 1
        log.warning("message.buried", **self._described(ending), rows=buried, reason=reason)

    def _described(self, ending: Ending) -> dict[str, Any]:
        newest = ending.group.newest
        return {
            "outbox": self._outbox.name,
            "shard": [str(part) for part in ending.turn.claim.shard],
            "category": newest[CATEGORY],
            "object": str(newest[OBJECT]),
            "message": newest[ID],
        }

    async def _failures(self, endings: list[Ending]) -> list[Failure | None]:
        """
        Tell for each failed delivery what moves, and how far: the shard, or the object; None where it is gone.

        In prepared mode the failure is counted already, and its delay known.
        """
        asked = {id(each): _retry_later_s(each) for each in endings}
        unknown = [each for each in endings if each.prepared is None or asked[id(each)] is not None]
        found = await self._next_delays([each.group for each in unknown], [asked[id(each)] for each in unknown])
        delays = dict(zip(map(id, unknown), found, strict=True))
        failures: list[Failure | None] = []
        for ending in endings:
            turn, group, prepared = ending.turn, ending.group, ending.prepared
            delay = delays.get(id(ending), None if prepared is None else prepared.delay)
            if delay is None:
                failures.append(None)
                continue
            turn.retry_in_s = delay.total_seconds()
            only_ids = None if self._live.blocks(group.newest[CATEGORY]) else ids_of_object(turn, group)
            failures.append(failure_of(turn, group, _error(ending), delay, only_ids, prepared))
        return failures

    async def _next_delays(self, groups: list[Group], asked: Sequence[float | None]) -> list[dt.timedelta | None]:
        """Tell the delays before the next tries, by each group's lowest message as read; None when that is gone."""
        scheduled_from = await self._outbox.read_scheduled_from([group.oldest[ID] for group in groups])
        delays: list[dt.timedelta | None] = []
        for group, own in zip(groups, asked, strict=True):
            since = scheduled_from.get(group.oldest[ID])
            until = group.oldest[SCHEDULED_FOR]
            delays.append(None if since is None else backoff.next_schedule(datetime_of(since), datetime_of(until), own))
        return delays

    def _settled(self, entries: Sequence[Entry]) -> None:
        """Note what is committed; whoever waits for a turn of it hears so."""
        was_full, self.settled_at, self.refused = self.is_full, time.monotonic(), ""
        for entry in entries:
            self._unsettled_rows -= entry.row_count
            turn = entry.turn
            turn.unsettled -= 1
            if not turn.unsettled:
                if turn.committed is not None:
                    turn.committed.set()
                if turn.over:
                    self._on_settled(turn)
        if not self._unsettled_rows:
            self.idle.set()
        if was_full and not self.is_full:
            self._on_room()


def _retry_later_s(ending: Ending) -> float | None:
    return ending.outcome.retry_later_s if isinstance(ending.outcome, Failed) else None


def _error(ending: Ending) -> str:
    return ending.outcome.error if isinstance(ending.outcome, Failed) else ""
