"""
Finding and claiming: the loop that keeps the drainers in work.

    found -> claimed -> (read, drained, settled) -> releasing -> free
             [_claim]                               [settled]    [_release]

Claims held ahead are at most what the drainers took in the last 0.2 s: replicas get their share, and the server's
lock table is not filled (2 000 at once ended in `out of shared memory` on a default server).
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog

from outboxd import errors
from outboxd.model import Candidate, ShardKey
from outboxd.options import NOTHING_OFF
from outboxd.pace import Pace
from outboxd.share import Share
from outboxd.turn import ID

if TYPE_CHECKING:
    from outboxd.bounded import BoundedRun
    from outboxd.claims import Claim, Claims
    from outboxd.find import Finder
    from outboxd.live import Live
    from outboxd.meter import ClaimCounters
    from outboxd.options import Switches
    from outboxd.outbox import Outbox
    from outboxd.turn import Turn

log = structlog.get_logger()

CLAIMS_AHEAD_MAX = 1_000
RESTING_MAX = 100_000
REST_S_MAX = 5.0
OFF_REST_S = 30.0
"""So long a shard of which every message is behind a category's switch is left alone, unless something new comes."""
PAUSE_S_MAX = 5.0
POSTPONED_S = 0.5
BOUNDED_FAILURES_MAX = 6


def _is_debug() -> bool:
    """Tell whether a line for each shard is wanted; a filtered one costs a tenth of what a small shard does."""
    return bool(structlog.get_logger().is_enabled_for(logging.DEBUG))


class Scheduler:
    """
    Finds and claims the due shards of one outbox.

    Args:
        outbox: The table.
        claims: The claim session.
        finder: Looks for its due shards.
        on_claimed: Gets each claim with the candidate it was won for; reads and drains it, then calls `settled`
            or `drop`.
        on_awaited: Called when a shard is wanted again that is held still.
        live: Settings and switches, as they are now.
        bounded: Set for a run that ends by itself.
        counters: Where to count.
    """

    def __init__(
        self,
        outbox: Outbox,
        claims: Claims,
        *,
        finder: Finder,
        live: Live,
        on_claimed: Callable[[Claim, Candidate], None],
        on_awaited: Callable[[], None],
        bounded: BoundedRun | None,
        counters: ClaimCounters,
    ) -> None:
        self._outbox = outbox
        self._claims = claims
        self._on_claimed = on_claimed
        self._on_awaited = on_awaited
        self._live = live
        self.bounded = bounded
        self.finder = finder
        self.counters = counters
        self._held: dict[int, Claim] = {}
        self._found: deque[Candidate] = deque()
        self._revisit: deque[Candidate] = deque()
        self._releasing: list[Claim] = []
        self._resting: dict[ShardKey, float] = {}
        self._off: dict[ShardKey, float] = {}
        self._looked_at = 0.0
        self.failures, self.complaint = 0, ""  # in a row, and the last one's error
        self._reported: errors.OutboxdError | None = None
        self._logs_turns = _is_debug()
        self._claimed = 0
        self._share = Share(claims.place if bounded is None else lambda: (0, 1))
        self._ahead = 0
        self._kick_at = 0
        self._pace = Pace()
        self._kick = asyncio.Event()

    async def schedule_batch(self) -> None:
        """
        Claim shards until stopped; in a bounded run, until a whole pass finds nothing more to do.

        Raises:
            SchemaError: The table is missing or has changed; it must be looked at again.
        """
        while not self._live.stopping:
            self._kick.clear()
            try:
                await self._release()
                worked = await self._step()
            except errors.SchemaError:
                raise
            except errors.OutboxdError as exc:
                self.failures += 1
                self._complain(exc)
                if self.bounded is not None and self.failures > BOUNDED_FAILURES_MAX:
                    raise
                self._live.beat()  # a look that ended in an error has ended, too
                await self._rest(min(PAUSE_S_MAX, 0.05 * 2**self.failures))
                continue
            if not self._held:  # with claims held it is their reading that may fail
                self.failures = 0
            if self._has_progressed():
                self._live.beat()
            if worked:
                continue
            if self._is_over():
                return
            if self._may_take_rest():
                self.finder.restart()
                continue
            await self._rest(self._rest_s())

    @property
    def claims_held(self) -> int:
        """Shards that this process has locked."""
        return len(self._held)

    def look_again(self) -> None:
        """Start the next pass now: settings or switches have changed."""
        self._logs_turns = _is_debug()
        self._resting.clear()
        self._off.clear()
        self.finder.restart()
        self._kick.set()

    def wake(self) -> None:
        """Look for new messages soon."""
        self.finder.wake()
        self._kick.set()

    def stop(self) -> None:
        """Let the loop see that it must end."""
        self._kick.set()

    def started(self, _turn: Turn) -> None:
        """Note that a drainer has taken a turn: there is room for another claim."""
        self._ahead -= 1
        self.failures = 0
        self._pace.tick()
        if self._ahead <= self._kick_at:
            self._kick.set()

    def settled(self, turn: Turn) -> None:
        """Take back the claim of a turn that is over, with everything of it committed."""
        claim = turn.claim
        if turn.unreadable or turn.interrupted:
            self._rest_shard(claim.shard, REST_S_MAX)
        elif turn.postponed:
            self._rest_shard(claim.shard, POSTPONED_S)
        elif turn.unfinished and claim.session.alive:  # of a lost claim others may have moved the rest
            claim.again = self._following(turn)
        if turn.retry_in_s is not None:
            self.finder.look_in(turn.retry_in_s)
        if self.bounded is not None and (turn.failed or turn.unreadable or turn.interrupted):
            self.bounded.failed.add(claim.shard)
            self.bounded.closed.add(claim.shard)
        if turn.rows_retired and self._logs_turns:
            log.debug(
                "shard.drained", outbox=self._outbox.name, shard=[str(p) for p in claim.shard], rows=turn.rows_retired
            )
        self._give_back(claim)

    def _following(self, turn: Turn) -> Candidate:
        """Name what follows a turn; where all of it was written since a bounded run began, it is found anew."""
        begun_at = self.finder.begun_at_id if self.bounded is not None else None
        is_new = begun_at is not None and turn.groups[0].oldest[ID] > begun_at
        return Candidate(turn.claim.shard, turn.claim.lock_key, None, is_new=is_new)

    def drop(self, claim: Claim, rest_s: float = 0.0, *, is_off: bool = False) -> None:
        """Give back a claim that led to no turn; with *rest_s*, leave its shard (*is_off*: all off) alone so long."""
        self._ahead -= 1
        if is_off:
            self._rest_in(self._off, claim.shard, OFF_REST_S)
            if self.bounded is not None:
                self.bounded.skipped.add(claim.shard)
                self.bounded.closed.add(claim.shard)
        if rest_s > 0:
            self._rest_shard(claim.shard, rest_s)
        self._give_back(claim)

    def retry(self, claim: Claim, candidate: Candidate) -> None:
        """Give back a claim and look at its shard again."""
        claim.again = candidate
        self.drop(claim)

    def fail(self, claim: Claim) -> None:
        """Give back a claim whose messages cannot be read at all, and leave its shard alone for a while."""
        if self.bounded is not None:
            self.bounded.failed.add(claim.shard)
        self.drop(claim, REST_S_MAX)

    def report(self, exc: errors.OutboxdError) -> None:
        """Take the error of a reader: a table that cannot be read is as good as one that cannot be searched."""
        self._reported = exc
        self._kick.set()

    def _give_back(self, claim: Claim) -> None:
        self._releasing.append(claim)
        self._kick.set()

    async def let_go(self) -> None:
        """Release every claim, at the end of a scheduler whose table is not what it was."""
        held, self._held = list(self._held.values()), {}
        await self._claims.release(held)

    async def _release(self) -> None:
        claims, self._releasing = self._releasing, []
        if not claims:
            return
        try:
            await self._claims.release(claims)
        finally:  # if it failed the session is gone, and the locks with it
            for claim in claims:
                self._held.pop(claim.lock_key, None)
                if claim.again is not None:
                    self._revisit.append(claim.again)

    async def _step(self) -> bool:
        """Look for shards, and claim as many shards as there is room for; False when there is nothing to do now."""
        if self._reported is not None:
            reported, self._reported = self._reported, None
            raise reported
        if not self._claims.is_open:
            raise errors.StoreUnavailable("the claim session is lost")
        room = self._room()
        # A few large claims cost less than many small ones: the next is made when half of these are drained.
        self._kick_at = max(self._ahead_min() // 2, (self._ahead + room) // 2)
        if room <= 0:
            return False
        wanted = self._take(room)
        looks = len(self._found) < room and self.finder.due_in_s() == 0.0
        if wanted and looks:
            # On different sessions: neither waits for the other. Both end before an error of either is raised.
            for outcome in await asyncio.gather(self._claim(wanted), self._look(), return_exceptions=True):
                if outcome is not None:
                    raise outcome
        elif wanted:
            await self._claim(wanted)
        elif looks:
            self.counters.last_batch = 0
            await self._look()
        return bool(wanted) or looks

    async def _look(self) -> None:
        number = self.finder.passes
        self._found.extend(self._share.of(await self.finder.look(), number))
        if number != self.finder.passes:
            self._share.end_pass(self.finder.passes)

    async def _claim(self, wanted: dict[int, Candidate]) -> None:
        claims = await self._claims.claim(list(wanted.values()))
        self._count(wanted, claims)
        for claim in claims:
            self._held[claim.lock_key] = claim
            self._ahead += 1
            self._on_claimed(claim, wanted[claim.lock_key])

    def _count(self, wanted: dict[int, Candidate], claims: list[Claim]) -> None:
        self.counters.last_batch = len(claims)
        self.counters.claimed += len(claims)
        self.counters.lost += len(wanted) - len(claims)
        if self.bounded is not None:
            self.bounded.claimed_in_pass += len(claims)
            self.bounded.closed |= {c.shard for c in wanted.values()} - {claim.shard for claim in claims}

    def _take(self, room: int) -> dict[int, Candidate]:
        """Take up to *room* candidates with distinct lock keys that may be claimed now; found ones first."""
        wanted: dict[int, Candidate] = {}
        switches = self._live.switches
        for source in (self._found, self._revisit):
            while source and len(wanted) < room:
                candidate = source.popleft()
                if candidate.lock_key in self._held:
                    self._held[candidate.lock_key].again = candidate
                    self._on_awaited()
                elif candidate.lock_key not in wanted and self._may_claim(candidate, switches):
                    wanted[candidate.lock_key] = candidate
        return wanted

    def _may_claim(self, candidate: Candidate, switches: Switches) -> bool:
        if switches is not NOTHING_OFF and self._outbox.is_off(candidate.shard, switches):
            if self.bounded is not None:
                self.bounded.skipped.add(candidate.shard)
            return False
        if self._resting and self._resting.get(candidate.shard, 0.0) > time.monotonic():
            return False
        if self._off and not candidate.is_new and self._off.get(candidate.shard, 0.0) > time.monotonic():
            return False
        return self.bounded is None or self.bounded.admits(candidate)

    def _rest_shard(self, shard: ShardKey, rest_s: float) -> None:
        """Do not look at a held shard again and again; a few seconds at most, in case somebody makes it due."""
        self._rest_in(self._resting, shard, min(rest_s, REST_S_MAX))
        if self.bounded is not None:
            self.bounded.closed.add(shard)

    def _rest_in(self, resting: dict[ShardKey, float], shard: ShardKey, rest_s: float) -> None:
        now = time.monotonic()
        if len(resting) >= RESTING_MAX:
            for key in [key for key, until in resting.items() if until <= now]:
                del resting[key]
        if len(resting) < RESTING_MAX:
            resting[shard] = now + rest_s

    def _room(self) -> int:
        allowed = max(self._ahead_min(), min(CLAIMS_AHEAD_MAX, self._pace.recent()))
        return min(allowed, 2 * CLAIMS_AHEAD_MAX - len(self._held)) - self._ahead

    def _ahead_min(self) -> int:
        return 2 * self._live.drain.concurrency

    def _is_over(self) -> bool:
        """Whether a bounded run has nothing left: a whole pass found nothing, and nothing is under way."""
        bounded = self.bounded
        if (
            bounded is None
            or not self._claims.is_open
            or self._held
            or self._found
            or self._revisit
            or self.finder.passes == bounded.passes
        ):
            return False
        if bounded.claimed_in_pass == 0:
            return True
        bounded.rounds += 1
        if bounded.rounds_max is not None and bounded.rounds >= bounded.rounds_max:
            return True
        bounded.passes, bounded.claimed_in_pass = self.finder.passes, 0
        self.finder.restart()
        self._kick.set()
        return False

    def _may_take_rest(self) -> bool:
        """Whether its own share is begun, so that it may look for what was left to others; not where nothing moves."""
        if self._found or self._revisit or self._ahead > 0 or self.finder.due_in_s() == 0:
            return False
        claimed, self._claimed = self._claimed, self.counters.claimed
        moves = claimed != self._claimed
        return moves and self._share.take_rest(self.finder.passes, self._live.poll_interval_s)

    def _has_progressed(self) -> bool:
        """Whether a look has finished since the last question, or a receiver is at work inside its timeout."""
        looked_at, self._looked_at = self._looked_at, self.finder.looked_at
        return looked_at != self._looked_at or self._live.is_delivering()

    def _rest_s(self) -> float:
        if self._room() <= 0 or (self.bounded is not None and self._held):
            return self._live.poll_interval_s
        return min(self.finder.due_in_s(), self._live.poll_interval_s)

    async def _rest(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._kick.wait()
        except TimeoutError:
            return

    def _complain(self, exc: errors.OutboxdError) -> None:
        """Say it at the first failure, then ever more rarely."""
        failures, self.complaint = self.failures, str(exc)
        if failures & (failures - 1) == 0:
            log.warning(
                "outbox.unavailable", outbox=self._outbox.name, error=str(exc), hint=exc.hint or None, failures=failures
            )
