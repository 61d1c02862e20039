"""How late the event loop was: told for a fixed time, to everybody who asks."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from outboxd import stall
from outboxd.metrics import Collector
from outboxd.pipeline import Pipeline
from outboxd.sampler import Sampler
from outboxd.stall import HEARTBEAT_S, WORST_KEPT_S, StallWatch
from tests.drains import Recorder, build, configure

LATE_S = 3.0


class Clock:
    """Stands still, unless it is told to go on."""

    def __init__(self) -> None:
        self.now = 1_000.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(stall, "time", SimpleNamespace(monotonic=made.monotonic))
    return made


def beat(watch: StallWatch, clock: Clock, after_s: float) -> float:
    """Let the loop turn again, so long after the last time; returns what is told then."""
    clock.now += after_s
    watch._beat()
    assert watch._handle is not None
    watch._handle.cancel()  # the next one comes from the test
    return watch.worst_s


async def test_the_worst_is_told_for_a_minute_at_least_and_two_at_most(clock: Clock) -> None:
    watch = StallWatch(lambda: build(configure(), Recorder()))
    told = [beat(watch, clock, HEARTBEAT_S + LATE_S)]
    while told[-1] > 1 and len(told) < 4 * WORST_KEPT_S / HEARTBEAT_S:
        told.append(beat(watch, clock, HEARTBEAT_S))

    assert told[:-1] == [pytest.approx(LATE_S)] * (len(told) - 1)
    assert WORST_KEPT_S <= (len(told) - 1) * HEARTBEAT_S <= 2 * WORST_KEPT_S + 1


async def test_it_is_told_as_soon_as_the_loop_turns_again_however_long_that_took(clock: Clock) -> None:
    watch = StallWatch(lambda: build(configure(), Recorder()))

    assert beat(watch, clock, HEARTBEAT_S + 10 * WORST_KEPT_S) == pytest.approx(10 * WORST_KEPT_S)


async def test_two_scrapers_are_told_the_same(clock: Clock) -> None:
    config = configure()
    pipeline = Pipeline(config, build(config, Recorder()), lambda: "")
    watch = StallWatch(lambda: pipeline.live.registry)
    collector = Collector(pipeline, Sampler(pipeline), watch)
    beat(watch, clock, HEARTBEAT_S + LATE_S)

    told = [
        sample.value
        for _scraper in range(2)
        for family in collector.collect()
        for sample in family.samples
        if sample.name == "outboxd_event_loop_lag_seconds"
    ]

    assert told == [pytest.approx(LATE_S)] * 2
