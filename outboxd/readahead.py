"""
Reading claimed shards ahead of the drainers, many in one statement, and making turns of them.

Bounded in rows, whatever the depth of a shard (I10). A shard whose failure is held is put to rest instead.
"""

from __future__ import annotations

import asyncio
import math
from collections import deque
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import structlog

from outboxd import errors, held
from outboxd.model import Candidate
from outboxd.turn import HEADERS, ID, PAYLOAD, SCHEDULED_FOR, SHARD_NUMBER, Turn, coalesce, keep_headers

if TYPE_CHECKING:
    import asyncpg

    from outboxd.claims import Claim
    from outboxd.drain import Drain
    from outboxd.lane import Lane
    from outboxd.live import Live
    from outboxd.model import KnownFailure
    from outboxd.schedule import Scheduler

log = structlog.get_logger()

READ_SHARDS_MAX = 1_000
"""As many as are claimed at once: in 400s, W0 took half as many reads more, of 150 µs each."""
BAD_DATA_CLASSES = {"22", "XX"}
"""SQLSTATE classes that speak of single rows: data exceptions (a wrong encoding) and corruption."""
READ_ROWS_MAX = 5_000
"""5 ms of the server, and 10 of this process until they are delivered."""
READ_ROWS_MIN = 500
WEIGHT_AHEAD_MAX = 10_000
"""What is read ahead of the drainers: a message weighs 1, and 1 more for each 2 kB of its payload and headers."""
CHARACTERS_PER_WEIGHT = 2_000

Claimed = tuple["Claim", "Candidate"]


class Reader:
    """
    Reads the shards that one scheduler claims.

    Args:
        lane: The outbox's part of the drain.
        drain: Where turns are queued.
        scheduler: Takes back claims that lead to no turn.
        live: Settings, registry and switches, as they are now.
    """

    def __init__(self, lane: Lane, drain: Drain, scheduler: Scheduler, live: Live) -> None:
        self._lane = lane
        self._drain = drain
        self._scheduler = scheduler
        self._live = live
        self._unread: deque[Claimed] = deque()
        self._weight_ahead = 0
        self._row_weight = 1.0
        self._kick = asyncio.Event()

    def put(self, claim: Claim, candidate: Candidate) -> None:
        """Take a claim to be read."""
        self._unread.append((claim, candidate))
        self._kick.set()

    def started(self, turn: Turn) -> None:
        """Note that a drainer has taken a turn: its rows are no longer ahead."""
        self._weight_ahead -= turn.weight
        if self._unread and self._weight_ahead < WEIGHT_AHEAD_MAX:
            self._kick.set()

    async def run(self) -> None:
        """Read what is claimed. Never returns."""
        while True:
            if not self._unread or self._weight_ahead >= WEIGHT_AHEAD_MAX:
                self._kick.clear()
                await self._kick.wait()
                continue
            batch = [self._unread.popleft() for _ in range(min(READ_SHARDS_MAX, len(self._unread)))]
            try:
                await self._read(batch)
            except errors.OutboxdError as exc:
                if isinstance(exc, errors.StatementFailed) and exc.sqlstate[:2] in BAD_DATA_CLASSES:
                    await self._read_one_by_one(batch, exc)
                    continue
                for claim, candidate in batch:
                    self._scheduler.retry(claim, candidate)
                self._scheduler.report(exc)

    async def _read_one_by_one(self, batch: list[Claimed], exc: errors.OutboxdError) -> None:
        """Find the shards that cannot be read (a damaged row, a wrong encoding): they must not stop the others."""
        for claimed in batch if len(batch) > 1 else []:
            one = [claimed]
            try:
                await self._read(one)
            except errors.OutboxdError as own:
                self._give_up(one, own)
        if len(batch) == 1:
            self._give_up(batch, exc)

    def _give_up(self, batch: list[Claimed], exc: errors.OutboxdError) -> None:
        for claim, _ in batch:
            shard = [str(part) for part in claim.shard]
            log.warning("shard.unreadable", outbox=self._lane.outbox.name, shard=shard, error=str(exc))
            self._scheduler.fail(claim)

    async def _read(self, batch: list[Claimed]) -> None:
        """Read a batch of claims; those that lead on are taken out of it, the others are given back if this fails."""
        for claimed in [one for one in batch if not one[0].session.alive]:
            batch.remove(claimed)
            self._scheduler.retry(*claimed)
        if not batch:
            return
        batch[:] = await self._make_turns(batch, None)
        if not batch:
            return
        known = await self._lane.outbox.read_failures([candidate.shard for _, candidate in batch])
        known = self._put_held_to_rest(batch, known)
        if batch:
            await self._make_turns(batch, known)

    async def _make_turns(self, batch: list[Claimed], known: list[list[KnownFailure]] | None) -> list[Claimed]:
        """
        Read, queue what was read, and put back what was not reached.

        Args:
            batch: Claims to read.
            known: Their known failures; None: not asked for yet.

        Returns:
            The claims that are to be read again: they have known failures, or may not be due any more. None when
            *known* is given.
        """
        rows_max = max(READ_ROWS_MIN, int(READ_ROWS_MAX / self._row_weight))
        categories_off = list(self._live.switches.categories)
        due_checked = known is not None or bool(categories_off) or any(each.due_at is None for _, each in batch)
        rows = await self._lane.outbox.read_messages(
            [candidate for _, candidate in batch],
            rows_per_shard=self._live.drain.turn_rows_max,
            rows_max=rows_max,
            categories_off=categories_off,
            failing_apart=known is None,
            due_checked=due_checked,
        )
        cut = len(rows) >= rows_max
        reached = rows[-1][SHARD_NUMBER] if cut else len(batch)
        by_shard = {number: list(group) for number, group in groupby(rows, key=itemgetter(SHARD_NUMBER))}
        again = []
        for number, claimed in enumerate(batch[:reached], 1):
            messages = by_shard.get(number, [])
            is_marked = bool(messages) and messages[0][ID] is None
            if is_marked and known is not None:  # no failure kept us from reading: all that is due of it is off
                self._queue(claimed, [], known[number - 1], cut=False, is_off=True)
            elif is_marked or (messages and not due_checked and not _is_due(claimed[1], messages)):
                again.append(claimed)
            else:
                failures = known[number - 1] if known else []
                self._queue(claimed, messages, failures, cut=cut and number == reached)
        self._unread.extendleft(reversed(batch[reached:]))
        return again

    def _put_held_to_rest(self, batch: list[Claimed], known: list[list[KnownFailure]]) -> list[list[KnownFailure]]:
        """Give back shards that a held failure blocks; returns what is known of the others."""
        free, failures_of_free = [], []
        for (claim, candidate), failures in zip(batch, known, strict=True):
            # Only a due message can wake a shard before its time, and none is known where we only come back to it.
            wakes_after_s = self._live.drain.retry_on_new_message_s if candidate.due_at is not None else math.inf
            held_for_s, _ = held.blocking(failures, self._live, wakes_after_s)
            if held_for_s > 0:
                self._scheduler.drop(claim, held_for_s)
            else:
                if self._live.switches.categories and self._early_s(failures) > 0:
                    # What find saw may be behind a switch, and must not wake the shard: any other due message may.
                    candidate = Candidate(candidate.shard, candidate.lock_key, None)
                free.append((claim, candidate))
                failures_of_free.append(failures)
        batch[:] = free
        return failures_of_free

    def _early_s(self, failures: list[KnownFailure]) -> float:
        """Tell in how many seconds a shard's own next try comes; 0 when it has come, or nothing has failed."""
        return held.blocking(failures, self._live, math.inf)[0]

    def _queue(
        self,
        claimed: Claimed,
        rows: list[asyncpg.Record],
        failures: list[KnownFailure],
        *,
        cut: bool,
        is_off: bool = False,
    ) -> None:
        """Make a turn of a shard's messages, without the objects that are held; nothing left: give the claim back."""
        claim = claimed[0]
        cut = cut or len(rows) >= self._live.drain.turn_rows_max
        groups = coalesce(rows, self._live.registry.apart)
        if self._drain.tracer is not None:
            keep_headers(groups, rows)
        rest_s = 0.0
        if failures:
            groups, rest_s = held.set_apart(groups, failures, self._live)
        if not groups:
            if cut:  # so many held messages that what lies behind them was not seen
                self._scheduler.retry(claim, Candidate(claim.shard, claim.lock_key, None, rows[-1][ID]))
            else:
                self._scheduler.drop(claim, rest_s if rows else self._early_s(failures), is_off=is_off)
            return
        weight = len(rows) + _characters(rows) // CHARACTERS_PER_WEIGHT
        self._row_weight = weight / len(rows)
        self._weight_ahead += weight
        turn = Turn(claim, *self._lane.outbox.identity_of(claim.shard), groups, weight, cut)
        self._drain.queue.put(self._lane, turn)


def _is_due(candidate: Candidate, rows: list[asyncpg.Record]) -> bool:
    """Whether the message that find saw is among them; nearly always it is the first."""
    due_at = candidate.due_at
    return rows[0][SCHEDULED_FOR] == due_at or any(row[SCHEDULED_FOR] == due_at for row in rows)


def _characters(rows: list[asyncpg.Record]) -> int:
    """Count those of payloads and headers. A loop: most shards have a row or two, for which iterators take longer."""
    count = 0
    for row in rows:
        if row[PAYLOAD] is not None:
            count += len(row[PAYLOAD])
        if row[HEADERS] is not None:
            count += len(row[HEADERS])
    return count
