"""How long a finder rests after looks that cost something: messages wait meanwhile."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from outboxd import find
from outboxd.find import Finder
from outboxd.outbox import NewMessages


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

    async def find_new(self, id_seen: int, _: list[int]) -> NewMessages:
        self.clock.now += self.cost_s
        return NewMessages([], id_seen, more=False, due_in_s=None, late_ids=[], gaps=[])

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


def finder_of(outbox: EmptyOutbox) -> Finder:
    return Finder(outbox, SimpleNamespace(poll_interval_s=1.0))  # type: ignore[arg-type]


async def rest_after(clock: Clock, cost_s: float) -> float:
    """Let a look at what is new cost so much, and find nothing; seconds to the next one that somebody asks for."""
    outbox = EmptyOutbox(clock)
    finder = finder_of(outbox)
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
    assert await rest_after(clock, 60.0) <= 15.0


async def test_looks_take_a_fifth_of_the_time_and_passes_a_fiftieth(clock: Clock) -> None:
    finder = finder_of(EmptyOutbox(clock, cost_s=0.1))
    spent = {"passes": 0.0, "looks": 0.0}
    while clock.now < 1_100:
        finder.wake()
        clock.now += finder.due_in_s()
        passes, begun_at = finder.passes, clock.now
        await finder.look()
        spent["passes" if finder.passes > passes else "looks"] += clock.now - begun_at

    assert 1 < spent["passes"] < 100 / 50 * 2 + 1  # each begins with a look at what is new
    assert 10 < spent["looks"] < 100 / 5 + 1
