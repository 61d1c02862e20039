"""How long a finder rests after looks that cost something: messages wait meanwhile."""

from __future__ import annotations

import itertools
from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest

from outboxd import find
from outboxd.find import Finder
from outboxd.model import Candidate, NewMessages

if TYPE_CHECKING:
    from collections.abc import Callable


class Clock:
    """Goes on when a statement takes its time."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


class EmptyOutbox:
    """Nothing is due, and looking takes as long as the test says."""

    def __init__(self, clock: Clock, cost_s: float = 0.0) -> None:
        self.clock = clock
        self.cost_s = cost_s
        self.asked_above: list[int] = []
        self.while_looking: Callable[[], None] | None = None

    async def find_new(self, id_seen: int, _: list[int]) -> NewMessages:
        self.clock.now += self.cost_s
        self.asked_above.append(id_seen)
        if self.while_looking is not None:
            self.while_looking()
        return NewMessages([], id_seen, more=False, due_in_s=None, late_ids=[], gaps=[], xmin=1, xid_next=1)

    async def find_scheduled_shards(self, *_: object) -> tuple[list[object], None]:
        self.clock.now += self.cost_s
        return [], None

    async def highest_id(self) -> int:
        return 0

    async def next_due_in_s(self) -> None:
        return None


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(find, "time", clock)
    return clock


def finder_of(outbox: EmptyOutbox, poll_interval_s: float = 1.0, beat: Callable[[], None] = lambda: None) -> Finder:
    live = SimpleNamespace(poll_interval_s=poll_interval_s, beat=beat)
    return Finder(outbox, live)  # type: ignore[arg-type]


async def rest_after(clock: Clock, cost_s: float) -> float:
    """Let a look at what is new cost so much, and find nothing; seconds to the next one that somebody asks for."""
    outbox = EmptyOutbox(clock)
    finder = finder_of(outbox, poll_interval_s=3_600.0)
    await finder.look()
    outbox.cost_s = cost_s
    finder.wake()
    await finder.look()
    finder.wake()
    return finder.due_in_s()


async def test_a_look_behind_a_bulk_load_keeps_others_waiting_for_a_few_times_its_cost(clock: Clock) -> None:
    assert await rest_after(clock, 0.006) == pytest.approx(0.03)


async def test_a_look_that_costs_nothing_is_repeated_at_once(clock: Clock) -> None:
    assert await rest_after(clock, 0.0) == 0.0


async def test_a_server_that_stood_still_is_not_rested_for(clock: Clock) -> None:
    assert await rest_after(clock, 60.0) == pytest.approx(3.0)


async def test_looks_take_a_fifth_of_the_time_and_passes_a_hundredth(clock: Clock) -> None:
    finder = finder_of(EmptyOutbox(clock, cost_s=0.05))
    spent = {"passes": 0.0, "looks": 0.0}
    while clock.now < 2_000:
        finder.wake()
        clock.now += finder.due_in_s()
        passes, begun_at = finder.passes, clock.now
        await finder.look()
        spent["passes" if finder.passes > passes else "looks"] += clock.now - begun_at

    assert spent["passes"] == pytest.approx(1_000 / 100, rel=0.1)
    assert spent["looks"] == pytest.approx(1_000 / 6, rel=0.1), "they rest for five times their cost"


@pytest.mark.parametrize(("is_due", "looks_late"), [(True, True), (False, False)])
async def test_while_much_that_is_new_is_found_by_its_ids_a_pass_is_a_second_late(
    clock: Clock, monkeypatch: pytest.MonkeyPatch, is_due: bool, looks_late: bool
) -> None:
    outbox = EmptyOutbox(clock)
    finder = finder_of(outbox)
    candidates = [Candidate((0, 1), 1, 5)] if is_due else []

    async def much(id_seen: int, _: list[int]) -> NewMessages:
        ids = id_seen + 5_000
        return NewMessages(candidates, ids, more=True, due_in_s=None, late_ids=[], gaps=[], xmin=1, xid_next=1)

    await finder.look()
    monkeypatch.setattr(outbox, "find_new", much)
    finder.wake()
    await finder.look()

    clock.now += 1.0  # the next pass is due
    await finder.look()
    assert (finder.passes == 1) == looks_late
    clock.now += 1.0
    await finder.look()
    assert finder.passes >= 2


async def test_whenever_there_is_something_to_look_for_a_look_looks(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else the scheduler would ask again and again without a rest, and nothing else would run."""
    outbox = EmptyOutbox(clock)
    finder = finder_of(outbox)
    await finder.look()
    outbox.cost_s = 0.6  # behind a bulk load: looks rest for three seconds
    finder.wake()
    await finder.look()
    outbox.cost_s = 0.0

    async def much(id_seen: int, _: list[int]) -> NewMessages:
        outbox.asked_above.append(id_seen)
        found, ids = [Candidate((0, 1), 1, 5)], id_seen + 5_000
        return NewMessages(found, ids, more=True, due_in_s=None, late_ids=[], gaps=[], xmin=1, xid_next=1)

    monkeypatch.setattr(outbox, "find_new", much)
    for _ in range(100):
        clock.now += 0.05
        if finder.due_in_s() == 0:
            before = len(outbox.asked_above), finder.passes
            await finder.look()
            assert (len(outbox.asked_above), finder.passes) != before


async def test_who_is_woken_while_a_pass_begins_looks_again_after_it(clock: Clock) -> None:
    outbox = EmptyOutbox(clock)
    finder = finder_of(outbox, poll_interval_s=3_600.0)
    await finder.look()
    outbox.while_looking = finder.wake
    finder.restart()
    await finder.look()
    outbox.while_looking = None

    assert finder.due_in_s() == 0.0
    await finder.look()
    assert len(outbox.asked_above) == 2
    assert finder.due_in_s() > 3_000


async def test_the_watchdog_is_fed_after_each_statement_of_a_look(clock: Clock) -> None:
    """Each may take a minute; only together would they take longer than a service manager waits."""
    outbox = EmptyOutbox(clock, cost_s=60.0)
    fed_at = [clock.now]
    finder = finder_of(outbox, beat=lambda: fed_at.append(clock.now))
    for _ in range(3):
        finder.restart()
        await finder.look()

    assert clock.now > fed_at[0] + 200
    assert max(later - earlier for earlier, later in itertools.pairwise(fed_at)) <= 60


async def test_the_highest_id_seen_never_falls(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where all that was delivered is dead there is no highest id; looks from 0 would walk it all."""
    outbox = EmptyOutbox(clock)
    finder = finder_of(outbox)
    await finder.look()

    async def much(id_seen: int, _: list[int]) -> NewMessages:
        return NewMessages([], id_seen + 5_000, more=True, due_in_s=None, late_ids=[], gaps=[], xmin=1, xid_next=1)

    with monkeypatch.context() as patch:
        patch.setattr(outbox, "find_new", much)
        finder.restart()
        await finder.look()
    finder.restart()
    await finder.look()

    assert outbox.asked_above == [5_000]
