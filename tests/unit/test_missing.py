"""Which ids are looked for that were not there: how long, and how many."""

from __future__ import annotations

import pytest

from outboxd import missing
from outboxd.missing import GAP_MAX, MISSING_MAX, MISSING_S, Missing
from tests.unit.test_find import Clock


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(missing, "time", clock)
    return clock


def test_gaps_are_looked_for_until_they_are_filled() -> None:
    ids = Missing()

    assert not ids.note([], [(5, 2), (9, 1)])
    assert ids.ids() == [5, 6, 9]
    assert not ids.note([6], [])
    assert ids.ids() == [5, 9]


def test_what_stays_away_is_forgotten(clock: Clock) -> None:
    ids = Missing()
    ids.note([], [(5, 1)])
    clock.now += MISSING_S - 1
    ids.note([], [(7, 1)])
    clock.now += 2

    assert ids.ids() == [7]


def test_when_one_of_a_large_gap_appears_there_may_be_more() -> None:
    ids = Missing()
    ids.note([], [(1, 1), (5, GAP_MAX + 1), (1_000, GAP_MAX)])

    assert len(ids.ids()) == 1 + 2 * GAP_MAX
    assert not ids.note([1, 1_000], [])
    assert ids.note([5], [])


def test_the_latest_are_kept() -> None:
    ids = Missing()
    for number in range(MISSING_MAX + 10):
        ids.note([], [(2 * number, 1)])

    assert ids.ids() == [2 * number for number in range(10, MISSING_MAX + 10)]


def test_a_range_of_millions_costs_nothing() -> None:
    ids = Missing()
    ids.note([], [(1, 10**12)])

    assert ids.ids() == list(range(1, GAP_MAX + 1))
