"""
Reading claimed shards ahead of the drainers, many in one statement, and making turns of them.

Bounded in rows, whatever the depth of a shard (I10). A shard whose failure is held is put to rest instead.
"""

from __future__ import annotations

import asyncio
from collections import deque
from itertools import groupby
from operator import itemgetter
from typing import TYPE_CHECKING

import structlog

from outboxd import errors
from outboxd.drain import Drain, Lane, Work
from outboxd.turn import CATEGORY, ID, OBJECT, SHARD_NUMBER, Group, Turn, coalesce

if TYPE_CHECKING:
    import asyncpg

    from outboxd.claims import Claim
    from outboxd.live import Live
    from outboxd.model import Candidate, KnownFailure
    from outboxd.schedule import Scheduler

log = structlog.get_logger()

READ_SHARDS_MAX = 400
READ_ROWS_MAX = 5_000
ROWS_AHEAD_MAX = 10_000
PAUSE_S = 0.5

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
        self._rows_ahead = 0
        self._kick = asyncio.Event()

    def put(self, claim: Claim, candidate: Candidate) -> None:
        """Take a claim to be read."""
        self._unread.append((claim, candidate))
        self._kick.set()

    def started(self, turn: Turn) -> None:
        """Note that a drainer has taken a turn: its rows are no longer ahead."""
        self._rows_ahead -= turn.rows_read
        if self._unread and self._rows_ahead < ROWS_AHEAD_MAX:
            self._kick.set()

    async def run(self) -> None:
        """Read what is claimed. Never returns."""
        while True:
            if not self._unread or self._rows_ahead >= ROWS_AHEAD_MAX:
                self._kick.clear()
                await self._kick.wait()
                continue
            batch = [self._unread.popleft() for _ in range(min(READ_SHARDS_MAX, len(self._unread)))]
            try:
                await self._read(batch)
            except errors.OutboxdError as exc:
                log.warning("outbox.unread", outbox=self._lane.outbox.name, shards=len(batch), error=str(exc))
                for claim, candidate in batch:
                    self._scheduler.retry(claim, candidate)
                await asyncio.sleep(PAUSE_S)

    async def _read(self, batch: list[Claimed]) -> None:
        """Read a batch of claims; those that lead on are taken out of it, the others are given back if this fails."""
        for claimed in [one for one in batch if not one[0].session.alive]:
            batch.remove(claimed)
            self._scheduler.retry(*claimed)
        if not batch:
            return
        rows = await self._read_messages(batch, failing_apart=True)
        batch[:] = self._make_turns(batch, rows, None)
        if not batch:
            return
        known = await self._lane.outbox.read_failures([candidate.shard for _, candidate in batch])
        known = self._put_held_to_rest(batch, known)
        if batch:
            self._make_turns(batch, await self._read_messages(batch, failing_apart=False), known)

    async def _read_messages(self, batch: list[Claimed], *, failing_apart: bool) -> list[asyncpg.Record]:
        return await self._lane.outbox.read_messages(
            [candidate for _, candidate in batch],
            rows_per_shard=self._live.drain.turn_rows_max,
            rows_max=READ_ROWS_MAX,
            categories_off=list(self._live.switches.categories),
            failing_apart=failing_apart,
        )

    def _make_turns(
        self, batch: list[Claimed], rows: list[asyncpg.Record], known: list[list[KnownFailure]] | None
    ) -> list[Claimed]:
        """Queue what was read, put back what was not reached, and return the shards that were set apart as failing."""
        reached = rows[-1][SHARD_NUMBER] if len(rows) >= READ_ROWS_MAX else len(batch)
        by_shard = {number: list(group) for number, group in groupby(rows, key=itemgetter(SHARD_NUMBER))}
        failing = []
        for number, claimed in enumerate(batch[:reached], 1):
            messages = by_shard.get(number, [])
            if messages and messages[0][ID] is None:
                failing.append(claimed)
            else:
                cut = len(rows) >= READ_ROWS_MAX and number == reached
                self._queue(claimed[0], messages, known[number - 1] if known else [], cut=cut)
        self._unread.extendleft(reversed(batch[reached:]))
        return failing

    def _put_held_to_rest(self, batch: list[Claimed], known: list[list[KnownFailure]]) -> list[list[KnownFailure]]:
        """Give back shards that a held failure blocks; returns what is known of the others."""
        free, failures_of_free = [], []
        for (claim, candidate), failures in zip(batch, known, strict=True):
            held_for_s = max(
                (
                    f.held_for_s(self._live.drain.retry_on_new_message_s)
                    for f in failures
                    if self._live.blocks(f.category)
                ),
                default=0.0,
            )
            if held_for_s > 0:
                self._scheduler.drop(claim, held_for_s)
            else:
                free.append((claim, candidate))
                failures_of_free.append(failures)
        batch[:] = free
        return failures_of_free

    def _queue(self, claim: Claim, rows: list[asyncpg.Record], failures: list[KnownFailure], *, cut: bool) -> None:
        """Make a turn of a shard's messages, without the objects that are held; nothing left: give the claim back."""
        groups = coalesce(rows, self._live.registry.apart)
        rest_s = 0.0
        if failures:
            groups, rest_s = self._without_held(groups, failures)
        if not groups:
            self._scheduler.drop(claim, rest_s)
            return
        cut = cut or len(rows) >= self._live.drain.turn_rows_max
        self._rows_ahead += len(rows)
        self._drain.queue.put(
            Work(self._lane, Turn(claim, self._lane.outbox, groups, rows_read=len(rows), unfinished=cut))
        )

    def _without_held(self, groups: list[Group], failures: list[KnownFailure]) -> tuple[list[Group], float]:
        """
        Tell each group what is known of its object, and leave out those that are held.

        Returns:
            The groups to deliver, and the seconds until the first of the others may be tried.
        """
        by_object = {(f.category, f.object_identifier): f for f in failures}
        free, rests = [], []
        for group in groups:
            group.known = by_object.get((group.newest[CATEGORY], str(group.newest[OBJECT])))
            held_for_s = group.known.held_for_s(self._live.drain.retry_on_new_message_s) if group.known else 0.0
            if held_for_s > 0:
                rests.append(held_for_s)
            else:
                free.append(group)
        return free, min(rests, default=0.0)
