"""
Looking for due shards: full passes over the index of due times, and quick looks at what is new.

    resting -> passing   [_step]      the next pass is due
    passing -> passing   [_step]      another 500 pairs, from where the last step ended
    passing -> resting   [_end_pass]  the end of the index was reached
    resting -> resting   [_new]       woken, or time to poll: what is above the highest id seen, or was missing below
                                      it; while that is much, a pass is up to a second late

A pass that restarts at the head walks every delivered message that cannot be vacuumed yet: with an old snapshot held,
28 000 rows/s fell to 12 000 in five rounds, and stayed at 100 000 when passes resume. So passes are rare (they take
at most a hundredth of the time), and between them only what is above the highest id is looked at, and ids that were
missing below it (looks that find nothing take at most a fifth). All that is a hint: passes find what it leaves out.
"""

from __future__ import annotations

import math
import random
import time
from typing import TYPE_CHECKING

from outboxd.missing import Missing
from outboxd.outbox import FIND_PAIRS

if TYPE_CHECKING:
    from outboxd.live import Live
    from outboxd.model import Candidate, Instant, NewMessages, ShardKey
    from outboxd.outbox import Outbox

PASS_SHARE_MAX = 1 / 100
"""Beside 1 000 000 dead entries (80 ms a pass) idling takes 34 ms of processor a second; with a fiftieth it took 45."""
NEW_SHARE_MAX = 1 / 5
"""A look that finds nothing may have walked what another transaction is still writing (6 ms for 100 000 rows), and
what is committed in the meantime waits: with a fortieth, W1 to W3 took 0.2 to 1.6 s longer in every fifth round."""
MUCH_NEW_S_MAX = 1.0
"""So long much that is new is found by its ids, before the pass that is due: 1.4 µs a shallow shard, where a pass takes
6 (and its steps hold up the next claims)."""
PASS_REST_S_MAX, NEW_REST_S_MAX = 15.0, 3.0
"""What a look costs is measured by the clock, and a server that stood still has cost nothing: no longer rest for it."""


class Finder:
    """
    Finds the due shards of one outbox.

    Args:
        outbox: Where to look.
        live: Its `poll_interval_s` is the longest rest between two passes that cost little.
    """

    def __init__(self, outbox: Outbox, live: Live) -> None:
        self._outbox = outbox
        self._live = live
        self._after: tuple[Instant, ShardKey] | None = None
        self._passing = False
        self._pass_cost_s = 0.0
        self._next_pass_at = 0.0
        self._next_new_at = 0.0
        self._next_poll_at = math.inf
        self._pass_rests_until = 0.0
        self._woken = self._is_much = False
        self._id_seen: int | None = None
        self._missing = Missing()
        self.begun_at_id: int | None = None
        """The highest id when the first pass began."""
        self.passes = 0
        self.looked_at = 0.0

    def wake(self) -> None:
        """Note that there may be new messages."""
        self._woken = True

    def restart(self) -> None:
        """Make the next look the start of a pass."""
        self._passing = False
        self._next_pass_at = 0.0

    def look_in(self, seconds: float) -> None:
        """Start the next pass when something becomes due, at the latest."""
        self._next_pass_at = min(self._next_pass_at, time.monotonic() + seconds + 0.001)

    def due_in_s(self) -> float:
        """Tell in how many seconds there is something to look for; 0 when there is now."""
        if self._passing:
            return 0.0
        new_at = self._next_new_at if self._woken else max(self._next_new_at, self._next_poll_at)
        return max(0.0, min(self._pass_at(), new_at) - time.monotonic())

    def _pass_at(self) -> float:
        """Tell when the next pass begins. `due_in_s` and `look` must agree on it: else nobody would ever rest."""
        return self._next_pass_at + (MUCH_NEW_S_MAX if self._is_much else 0.0)

    async def look(self) -> list[Candidate]:
        """
        Take one step: a part of a pass, or a look at what is new, or nothing when neither is due.

        Raises:
            StoreUnavailable, SchemaError, StatementFailed: The step is taken again at the next call.
        """
        now = time.monotonic()
        if self._passing or now >= self._pass_at():
            candidates = await self._step()
        elif now >= self._next_new_at and (self._woken or now >= self._next_poll_at):
            candidates = (await self._new()).candidates
        else:
            return []
        self.looked_at = time.monotonic()
        return candidates

    async def _step(self) -> list[Candidate]:
        started_at = time.monotonic()
        candidates: list[Candidate] = []
        if not self._passing:
            new = None if self._id_seen is None else await self._new()
            candidates = [] if new is None else new.candidates
            if new is None or new.more:  # of much that is new, the rest is found by the pass itself
                highest = await self._outbox.highest_id()
                self._live.beat()
                # Never lower: where all that was delivered is dead there is no highest id, and looks would walk it all.
                self._id_seen = highest if self._id_seen is None else max(self._id_seen, highest)
                self.begun_at_id = self._id_seen if self.begun_at_id is None else self.begun_at_id
            self._passing, self._after, self._pass_cost_s = True, None, 0.0
        found, self._after = await self._outbox.find_scheduled_shards(self._after, FIND_PAIRS)
        self._live.beat()  # each of these statements may take a minute
        if self._after is None:
            await self._end_pass(started_at)
        else:
            self._pass_cost_s += time.monotonic() - started_at
        return candidates + found

    async def _end_pass(self, started_at: float) -> None:
        """Rest until the next message becomes due, at most a poll interval, and in proportion to the pass's cost."""
        due_in_s = await self._outbox.next_due_in_s()
        now = time.monotonic()
        self._pass_cost_s += now - started_at
        rest_s = self._rest_s()
        self._next_poll_at = now + rest_s
        if due_in_s is not None:
            rest_s = min(rest_s, due_in_s + 0.001)
        self._pass_rests_until = now + min(PASS_REST_S_MAX, self._pass_cost_s / PASS_SHARE_MAX)
        self._next_pass_at = max(now + rest_s, self._pass_rests_until)
        self._passing = False
        self.passes += 1

    def _rest_s(self) -> float:
        return self._live.poll_interval_s * random.uniform(0.9, 1.0)  # noqa: S311  replicas must not poll in step

    async def _new(self) -> NewMessages:
        self._woken = False
        started_at = time.monotonic()
        self._next_poll_at = started_at + self._rest_s()
        try:
            new = await self._outbox.find_new(self._id_seen or 0, self._missing.ids())
        except BaseException:
            self._woken = True
            raise
        self._live.beat()
        if self._missing.note(new.late_ids, new.gaps, xmin=new.xmin, xid_next=new.xid_next):
            self._next_pass_at = min(self._next_pass_at, self._pass_rests_until)
        if new.due_in_s is not None:
            self.look_in(new.due_in_s)
        if not new.candidates:  # what producers write and drain themselves may be dead there, and walked each time
            now = time.monotonic()
            self._next_new_at = now + min(NEW_REST_S_MAX, (now - started_at) / NEW_SHARE_MAX)
        self._id_seen = new.id_max
        self._is_much = new.more and bool(new.candidates)  # else a look rests, and the pass must not wait for it
        self._woken = self._woken or new.more
        return new


class OneShard(Finder):
    """
    Finds one shard of an outbox and no other; each look is a whole pass.

    Args:
        outbox: Where to look.
        live: Its `turn_rows_max` is how many of the shard's first messages are looked at.
        shard: Whose messages.
    """

    def __init__(self, outbox: Outbox, live: Live, shard: ShardKey) -> None:
        super().__init__(outbox, live)
        self._shard = shard

    def wake(self) -> None:
        """Nothing to note: most of what is new is not in this shard, and the next look sees what is."""

    async def _step(self) -> list[Candidate]:
        found = await self._outbox.find_shard(self._shard, self._live.drain.turn_rows_max)
        self._next_pass_at = time.monotonic() + self._live.poll_interval_s
        self.passes += 1
        return found
