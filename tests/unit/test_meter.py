"""Counting in slices gives what counting one by one gives."""

from __future__ import annotations

from bisect import bisect_left

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from outboxd.meter import AGES_S, CATEGORIES_MAX, OTHERS, SLICE_S, WORK_S, Histogram, Meter, cumulated

# Ages in microseconds: at a bound, beside it, far beyond all of them, and below 0 where clocks disagree.
AT_BOUNDS = [round(bound * 1e6) + step for bound in AGES_S for step in (-1, 0, 1)]
AGES = st.one_of(st.sampled_from(AT_BOUNDS), st.integers(-(10**9), 10**12))
SLICES = st.lists(st.tuples(st.integers(1, 500), st.floats(0, 100)), min_size=1, max_size=20)


def one_by_one(ages_us: list[int]) -> Histogram:
    """The same, the slow way."""
    histogram = Histogram(AGES_S)
    for age in ages_us:
        histogram.observe(max(0, age) / 1e6)
    return histogram


@given(st.lists(AGES, min_size=1, max_size=200))
@example(AT_BOUNDS)
def test_ages_taken_together_count_as_if_taken_one_by_one(ages_us: list[int]) -> None:
    together = Histogram(AGES_S)
    together.observe_ages(sorted(ages_us))

    apart = one_by_one(ages_us)
    assert together.counts == apart.counts
    assert together.total_s == pytest.approx(apart.total_s)


@given(st.lists(st.tuples(st.floats(0, 1e5), st.integers(1, 50)), max_size=50))
def test_an_observation_counts_under_the_lowest_bound_that_is_not_below_it(observed: list[tuple[float, int]]) -> None:
    histogram = Histogram(WORK_S)
    for seconds, times in observed:
        histogram.observe(seconds, times)

    for number, (below, bound) in enumerate(zip((-1.0, *WORK_S), (*WORK_S, float("inf")), strict=True)):
        assert histogram.counts[number] == sum(times for seconds, times in observed if below < seconds <= bound)
    assert histogram.total_s == pytest.approx(sum(seconds * times for seconds, times in observed))


@given(st.lists(AGES, min_size=1, max_size=200))
def test_cumulated_counts_never_fall_and_end_with_all(ages_us: list[int]) -> None:
    histogram = one_by_one(ages_us)

    pairs = cumulated(histogram)
    counts = [count for _, count in pairs]
    assert [bound for bound, _ in pairs] == [*(str(float(bound)) for bound in AGES_S), "+Inf"]
    assert counts == sorted(counts)
    assert counts[-1] == len(ages_us)
    for bound, count in pairs[:-1]:
        assert count == sum(max(0, age) / 1e6 <= float(bound) for age in ages_us)


@given(st.lists(st.tuples(AGES, st.integers(0, 10**9)), min_size=1, max_size=100), st.booleans())
def test_a_meter_keeps_lags_and_waits_apart_and_adds_up_what_it_is_given(
    ages: list[tuple[int, int]], one_list: bool
) -> None:
    lags = [lag for lag, _ in ages]
    waits = list(lags) if one_list else [lag - earlier for lag, earlier in ages]
    meter = Meter()
    for _ in range(2):
        given_lags = list(lags)
        meter.observe(7, given_lags, given_lags if one_list else list(waits), [(len(lags), 0.001)])

    tally = meter.categories[7]
    assert tally.lag.counts == one_by_one(lags * 2).counts
    assert tally.queued.counts == one_by_one(waits * 2).counts
    assert tally.lag.total_s == pytest.approx(one_by_one(lags * 2).total_s)
    assert sum(tally.processing.counts) == 2 * len(lags)


@given(SLICES)
@example([(2, 2 * SLICE_S)])
@example([(1, 60.0)])
def test_every_delivery_of_a_slice_has_a_time_and_they_add_up_to_the_slice(slices: list[tuple[int, float]]) -> None:
    meter = Meter()
    meter.observe(1, [0], [0], slices)

    processing = meter.of(1).processing
    assert sum(processing.counts) == sum(count for count, _ in slices)
    assert processing.total_s == pytest.approx(sum(seconds for _, seconds in slices))


@pytest.mark.parametrize("quick", [1, 99])
def test_a_slow_receiver_is_seen_behind_the_quick_ones_of_its_slice(quick: int) -> None:
    meter = Meter()
    meter.observe(1, [0], [0], [(quick + 1, 3.0)])

    counts = meter.of(1).processing.counts
    assert counts[bisect_left(WORK_S, 3.0)] == 1
    assert counts[0] == quick


def test_categories_are_tallied_apart_and_totalled_together() -> None:
    meter = Meter()
    meter.of(1).delivered += 2
    meter.of(2).delivered += 3
    meter.of(2).failures += 1

    assert (meter.total("delivered"), meter.total("failures"), meter.total("buried")) == (5, 1, 0)
    assert (meter.of(1).delivered, meter.of(2).delivered) == (2, 3)


def test_numbers_without_end_share_a_tally() -> None:
    meter = Meter()
    for category in range(2 * CATEGORIES_MAX):
        meter.of(category).retired += 1

    assert len(meter.categories) == CATEGORIES_MAX + 1
    assert meter.of(OTHERS).retired == CATEGORIES_MAX
    assert meter.total("retired") == 2 * CATEGORIES_MAX
