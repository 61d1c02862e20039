"""
Draining: a fixed number of drainers take turns of claimed shards and deliver them, group after group.

    ready -> delivering -> over -> settled -> released
             [drain_shard]  [finish]  [Settler]  [Scheduler]

Within a shard deliveries run one after another (I4); no transaction and no row lock is open while a receiver runs
(I5). A drainer gives the event loop a turn of its own every few milliseconds, however quick the receivers are.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any

import anyio
import structlog

from outboxd import errors, tracing
from outboxd.deliver import is_being_ended, is_delivering, take_back_cancellation
from outboxd.ending import Ending
from outboxd.lane import Queue
from outboxd.meter import SLICE_S
from outboxd.model import DIED_ERROR, Buried, Failed, Message, Outcome, Unsent, Untried
from outboxd.options import NOTHING_OFF
from outboxd.replicas import RowUnreadableError
from outboxd.turn import CATEGORY, ID, LARGE, OBJECT, PAYLOAD, Group, Turn, message_of

if TYPE_CHECKING:
    from collections.abc import Awaitable

    from opentelemetry.trace import Tracer

    from outboxd.deliver import Delivery
    from outboxd.lane import Lane
    from outboxd.live import Live
    from outboxd.registry import Category

log = structlog.get_logger()

SETTLE_SUSPECT_S_MAX = 10.0


class Drain:
    """
    The drainers.

    Args:
        live: Settings, registry and switches, as they are now.
        delivery: Calls receivers.
    """

    def __init__(self, live: Live, delivery: Delivery) -> None:
        self.queue = Queue()
        self.drainers = 0
        self._live = live
        self._delivery = delivery
        self._suspects = asyncio.Lock()
        self._breath_at = 0.0
        self._breaths = 0
        self._slice_has_begun = False
        self._breath: asyncio.Event | None = None
        self.tracer = tracing.tracer()

    async def drainer(self) -> None:
        """Take turns until the queue is closed and empty, or there are more drainers than wanted."""
        try:
            while self.drainers <= self._live.drain.concurrency:
                try:
                    taken = self.queue.get_nowait()
                    if taken is None:  # it has to wait, or to end
                        taken = await self.queue.get()
                        if taken is None:
                            return
                        self._begin_slice()
                    await self.drain_shard(*taken)
                except asyncio.CancelledError:
                    if is_being_ended():
                        raise
                    # A receiver has cancelled its own task, which is ours, and returned before that took effect.
                    take_back_cancellation()
        finally:
            self.drainers -= 1

    async def drain_shard(self, lane: Lane, turn: Turn) -> None:
        """
        Deliver a turn's groups, one after another, until one blocks the shard or a bound is reached.

        Each ending goes to the settler, in order; what has none stays in the outbox.
        """
        is_delivering.set(True)
        lane.begin(turn)
        turn.interrupted = True
        try:
            try:
                await (self._drain_prepared(lane, turn) if self._live.prepared else self._drain(lane, turn))
            except errors.OutboxdError as exc:  # a payload or a preparation; what receivers raise is an outcome
                self._give_up(lane, turn, exc)
            turn.interrupted = False
        except Exception:  # ours, not a receiver's: one shard must not end the others
            log.exception("shard.crashed", outbox=lane.outbox.name, shard=[str(p) for p in turn.claim.shard])
        finally:
            lane.end(turn)

    def _give_up(self, lane: Lane, turn: Turn, exc: errors.OutboxdError) -> None:
        if self._must_end(lane, turn):
            turn.unfinished = True
            return
        turn.unreadable = True
        shard, hint = [str(part) for part in turn.claim.shard], exc.hint or None
        log.warning("shard.unreadable", outbox=lane.outbox.name, shard=shard, error=str(exc), hint=hint)

    async def _drain(self, lane: Lane, turn: Turn) -> None:
        monotonic = time.monotonic
        turn.slice_at = monotonic()
        ends_at = turn.slice_at + self._live.drain.turn_s_max
        failed_objects: set[tuple[int, Any]] = set()
        off: frozenset[int] = frozenset()
        has_waited = True
        for number, group in enumerate(turn.groups):
            if monotonic() > self._breath_at:
                await self._breathe(lane, turn)
                has_waited = True
            if has_waited:  # else nothing but this task has run, and nothing has changed
                has_waited = False
                off = self._live.switches.categories
                if self._must_end(lane, turn) or (number > 0 and monotonic() > ends_at):
                    turn.unfinished = True
                    return
            if (off and group.newest[CATEGORY] in off) or (failed_objects and group.subject in failed_objects):
                continue
            rest = self._deliver(lane, turn, group)
            if rest is None:
                turn.delivered.append(group)
                continue
            has_waited = True
            lane.settler.hand_over(turn)  # what was delivered is not to wait for this one
            moment = self._moment()
            outcome = await rest
            self._begin_slice(moment)
            if outcome is None:
                turn.delivered.append(group)
                lane.settler.hand_over(turn)
                continue
            lane.settler.add(Ending(turn, group, outcome, None))
            turn.slice_at = monotonic()
            if isinstance(outcome, Failed):
                if self._blocks(turn, group):
                    return
                failed_objects.add(group.subject)

    async def _drain_prepared(self, lane: Lane, turn: Turn) -> None:
        """Count each delivery as a failure before it starts: if it kills us, it has pushed itself back (I9)."""
        ends_at = time.monotonic() + self._live.drain.turn_s_max
        failed_objects: set[tuple[int, Any]] = set()
        for number, group in enumerate(turn.groups):
            if self._must_end(lane, turn) or turn.unsettled or (number > 0 and time.monotonic() > ends_at):
                turn.unfinished = True
                return
            if group.newest[CATEGORY] in self._live.switches.categories or group.subject in failed_objects:
                continue
            # Suspects go one at a time: else those that were only beside the killer would die with it again and again.
            suspect = group.known is not None and group.known.last_error == DIED_ERROR
            if suspect and self._suspects.locked():
                turn.postponed = True
                return
            async with self._suspects if suspect else contextlib.nullcontext():
                outcome = await self._deliver_prepared(lane, turn, group)
            if isinstance(outcome, Untried):
                turn.unfinished = True
                return
            if isinstance(outcome, Failed):
                if self._blocks(turn, group):
                    return
                failed_objects.add(group.subject)

    async def _deliver_prepared(self, lane: Lane, turn: Turn, group: Group) -> Outcome:
        """Deliver one group that is counted first, and wait for its ending to be committed; Untried: go no further."""
        prepared = await lane.settler.prepare(turn, group)
        outcome: Outcome = Untried()
        if prepared is None:
            return outcome
        turn.committed = asyncio.Event()
        turn.slice_at = time.monotonic()
        try:
            if not self._must_end(lane, turn):
                rest = self._deliver(lane, turn, group)
                outcome = None if rest is None else await rest
        finally:  # a delivery that we cancel is nobody's failure
            if outcome is None:
                turn.delivered.append(group)
                lane.settler.hand_over(turn)
            else:
                lane.settler.add(Ending(turn, group, outcome, prepared))
        with anyio.move_on_after(SETTLE_SUSPECT_S_MAX):
            await turn.committed.wait()
        return outcome

    def _blocks(self, turn: Turn, group: Group) -> bool:
        """Note a failure; whether it ends the drain of the shard."""
        turn.failed = True
        if self._live.blocks(group.newest[CATEGORY]):
            turn.unfinished = False
            return True
        return False

    async def _breathe(self, lane: Lane, turn: Turn) -> None:
        """
        Let the event loop look at its sockets, and what was delivered be settled meanwhile.

        All drainers take the same breath: if each yielded on its own, the others would fill the gap, and the answers
        of the database would wait for as many slices as there are drainers.
        """
        lane.settler.hand_over(turn)
        if self._breath is None:
            self._breath = asyncio.Event()
            asyncio.get_running_loop().call_soon(self._end_breath, self._breath)
        await self._breath.wait()
        turn.slice_at = time.monotonic()

    def _moment(self) -> int:
        """Return a number that is another one once any other task has run."""
        return self._breaths + self._delivery.suspensions

    def _begin_slice(self, since: int | None = None) -> None:
        """
        Note that a drainer goes on after it has waited: the event loop has just turned, and a breath is not due yet.

        With *since* only if anything else has run since that moment.

        Once a turn of the loop: if many drainers go on at the same time, the later ones breathe.
        """
        if self._slice_has_begun or since == self._moment():
            return
        self._slice_has_begun = True
        self._breaths += 1
        self._breath_at = time.monotonic() + SLICE_S
        asyncio.get_running_loop().call_soon(self._loop_turned)

    def _loop_turned(self) -> None:
        self._slice_has_begun = False

    def _end_breath(self, breath: asyncio.Event) -> None:
        self._breaths += 1
        self._breath_at = time.monotonic() + SLICE_S
        self._breath = None
        breath.set()

    def _deliver(self, lane: Lane, turn: Turn, group: Group) -> Awaitable[Outcome] | None:
        """Deliver one group; None when its receivers have accepted at once, else what to await for the outcome."""
        newest = group.newest
        category = self._live.registry.categories.get(newest[CATEGORY])
        if category is None or not category.receivers or group.known is not None or newest[LARGE] or category.sources:
            return self._deliver_special(lane, turn, group, category)
        return self._send(lane, turn, group, category, newest[PAYLOAD])

    async def _deliver_special(self, lane: Lane, turn: Turn, group: Group, category: Category | None) -> Outcome:
        refusal = self._refusal(lane, group, category)
        if refusal is not None or category is None:
            return self._unsent(lane, turn, group, refusal)
        if not category.receivers:
            turn.unhandled |= {category.value}
            return None
        payload = group.newest[PAYLOAD]
        if group.newest[LARGE]:
            payload = await self._late_payload(lane, group)
            if self._must_end(lane, turn):
                raise errors.StatementFailed("a stop, or a lost claim, came while the payload was read")
        if category.sources:
            try:
                await lane.sources.prepare(turn, group, category)
            except RowUnreadableError as exc:
                return self._unsent(lane, turn, group, Failed(str(exc)))
            if self._must_end(lane, turn):
                raise errors.StatementFailed("a stop, or a lost claim, came while rows were read")
        rest = self._send(lane, turn, group, category, payload)
        return None if rest is None else await rest

    def _send(
        self, lane: Lane, turn: Turn, group: Group, category: Category, payload: str | None
    ) -> Awaitable[Outcome] | None:
        try:
            message = message_of(group, turn, lane.outbox.name, category, self._live.registry, payload)
        except (ValueError, RecursionError, MemoryError) as exc:  # jsonb holds more than a parser takes
            failed = Failed(f"payload or headers of message {group.newest[ID]} cannot be parsed: {exc}")
            return _known(self._unsent(lane, turn, group, failed))
        if self.tracer is not None:
            return self._traced(self.tracer, group, category, message)
        rest = self._delivery.send_signal(category, message)
        return None if rest is None else self._conclude(rest, group, category, message)

    async def _traced(self, tracer: Tracer, group: Group, category: Category, message: Message) -> Outcome:
        with tracing.delivery(tracer, message, group.headers) as end:
            rest = self._delivery.send_signal(category, message)
            outcome = None if rest is None else await rest
            end(outcome)
        return await self._conclude(_known(outcome), group, category, message)

    async def _conclude(self, rest: Awaitable[Outcome], group: Group, category: Category, message: Message) -> Outcome:
        outcome = await rest
        self._report(outcome, message)
        if not isinstance(outcome, Failed):
            return outcome
        if 0 < category.attempts_max <= group.attempt:
            return Buried(outcome.error)
        return Failed(outcome.error, outcome.retry_later_s)  # its exception would keep the payload in memory (I10)

    def _unsent(self, lane: Lane, turn: Turn, group: Group, outcome: Outcome) -> Outcome:
        """Tell of a message that no receiver was given."""
        registry, number = self._live.registry, group.newest[CATEGORY]
        category = registry.categories.get(number)
        unsent = Unsent(
            id=group.newest[ID],
            outbox=lane.outbox.name,
            shard_identifier=turn.identifier,
            region_name=turn.region,
            category_name=str(number) if category is None else category.name,
            scope_name=registry.scopes.get(turn.scope) or str(turn.scope),
            object_identifier=group.newest[OBJECT],
            attempt=group.attempt,
            coalesced=len(group.ids),
        )
        self._report(outcome, unsent)
        return outcome

    def _report(self, outcome: Outcome, message: Message | Unsent) -> None:
        if isinstance(outcome, Failed) and self._live.on_failed is not None:
            try:
                self._live.on_failed(outcome, message)
            except Exception:  # whoever is told of failures must not turn them into something else
                log.exception("failure.unreported")

    def _refusal(self, lane: Lane, group: Group, category: Category | None) -> Outcome:
        """Tell why a group cannot be given to a receiver at all; None when it can, or when it may be discarded."""
        if category is None:
            return Failed(
                f"category {group.newest[CATEGORY]} of message {group.newest[ID]} is not in the configuration"
            )
        if not category.receivers and not lane.discard_unhandled:
            return Failed(f"no receiver is registered for category {category.name}")
        if group.known is not None and 0 < category.attempts_max < group.attempt:
            return Buried(group.known.last_error)  # attempts that the process did not survive count too
        return None

    async def _late_payload(self, lane: Lane, group: Group) -> str:
        """Read a large payload just before its delivery, so that memory is bounded by the concurrency (I10)."""
        rows = await lane.outbox.read_payload(group.newest[ID])
        if not rows:
            raise errors.StatementFailed("the message was deleted while it waited for its delivery")
        return str(rows[0][0])

    def _must_end(self, lane: Lane, turn: Turn) -> bool:
        """Whether nothing of this turn may be started any more."""
        live = self._live
        if live.stopping or lane.is_closed or not turn.claim.is_usable(time.monotonic()):
            return True
        return live.switches is not NOTHING_OFF and lane.outbox.is_off(turn.claim.shard, live.switches)


async def _known(outcome: Outcome) -> Outcome:
    """Be awaited for an outcome that is there already."""
    return outcome
