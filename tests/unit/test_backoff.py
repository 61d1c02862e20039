"""The delay after a failure: its bounds and its growth, for every schedule that PostgreSQL can hold."""

from __future__ import annotations

import datetime as dt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.backoff import DELAY_MAX, DELAY_MIN, last_delay, next_schedule

START = dt.datetime(2026, 1, 1, tzinfo=dt.UTC)
DUE_WHEN_WRITTEN = dt.datetime(2016, 8, 1, tzinfo=dt.UTC)
MOMENTS = st.datetimes(timezones=st.sampled_from([dt.UTC, dt.timezone(dt.timedelta(hours=-14))]))
WAITS = st.timedeltas(min_value=dt.timedelta(0), max_value=dt.timedelta(days=1000))


def delays_of_failures(count: int) -> list[float]:
    """Seconds between the tries of a message that fails each time, from its first."""
    scheduled_from, scheduled_for = START, DUE_WHEN_WRITTEN
    delays = []
    for _ in range(count):
        delay = next_schedule(scheduled_from, scheduled_for)
        scheduled_from = max(scheduled_from, scheduled_for)
        scheduled_for = scheduled_from + delay
        delays.append(delay.total_seconds())
    return delays


def test_repeated_failures_wait_2_4_8_and_so_on_up_to_an_hour() -> None:
    doubling = [2.0**n for n in range(1, 12)]

    assert delays_of_failures(15) == [*doubling, 3600.0, 3600.0, 3600.0, 3600.0]


@given(MOMENTS, MOMENTS)
def test_the_delay_is_between_two_seconds_and_an_hour_for_any_schedule(a: dt.datetime, b: dt.datetime) -> None:
    assert 2 * DELAY_MIN <= next_schedule(a, b) <= DELAY_MAX


@given(MOMENTS, MOMENTS)
def test_the_last_delay_is_at_least_a_second(a: dt.datetime, b: dt.datetime) -> None:
    assert last_delay(a, b) == max(b - a, DELAY_MIN)


@given(WAITS, WAITS)
def test_a_longer_wait_never_leads_to_a_shorter_one(a: dt.timedelta, b: dt.timedelta) -> None:
    shorter, longer = sorted((a, b))

    assert next_schedule(START, START + shorter) <= next_schedule(START, START + longer)


@given(st.timedeltas(min_value=DELAY_MIN, max_value=DELAY_MAX / 2))
def test_the_wait_doubles_while_it_is_under_half_an_hour(waited: dt.timedelta) -> None:
    assert next_schedule(START, START + waited) == 2 * waited


@given(MOMENTS, WAITS)
def test_only_the_wait_matters_not_when_it_was(moment: dt.datetime, waited: dt.timedelta) -> None:
    if moment.replace(tzinfo=None) < dt.datetime(9990, 1, 1):  # noqa: DTZ001
        assert next_schedule(moment, moment + waited) == next_schedule(START, START + waited)


@pytest.mark.parametrize("waited_s", [-1e9, -1, 0, 0.5, 0.999999])
def test_a_wait_under_a_second_counts_as_one(waited_s: float) -> None:
    waited = dt.timedelta(seconds=waited_s)

    assert next_schedule(START, START + waited) == dt.timedelta(seconds=2)


@given(MOMENTS, MOMENTS, st.floats(0, 30 * 86_400))
def test_a_delay_that_the_receiver_chose_wins(a: dt.datetime, b: dt.datetime, chosen_s: float) -> None:
    assert next_schedule(a, b, chosen_s) == dt.timedelta(seconds=chosen_s)
