"""
What was done with the messages and shards of one outbox: plain numbers, cheap enough for every message.

A message costs some 3 µs in all, and one observation of a ready-made histogram 1 to 2. So deliveries are observed in
slices: what one drainer delivered without a pause, 2 ms of work or one receiver that was waited for.
"""

from __future__ import annotations

import time
from bisect import bisect_left, bisect_right
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outboxd.model import Instant

_UNIX_OF_INSTANT_0 = 946_684_800
"""2000-01-01 in Unix time: where PostgreSQL begins to count."""

AGE_US_MAX = 10 * 365 * 86_400 * 1_000_000
SLICE_S = 0.002
"""For so long drainers deliver before they let the event loop turn."""

UNKNOWN = "unknown"
"""What stands for every category that is not configured, where categories are told by name."""
CATEGORIES_MAX = 2_000
OTHERS = -(2**31) - 1
"""No category: numbers of categories are int4."""

AGES_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900, 3_600, 21_600, 86_400)
"""Bounds of ages: from a wake-up that went well to a shard that was stuck for a day."""
WORK_S = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60)
"""Bounds of the time inside receivers: `receiver_timeout_s` is 60 by default."""


class Histogram:
    """
    Counts by upper bound.

    Args:
        bounds: Seconds, ascending. `counts` has one entry more, for what is above them all; they are not cumulated.
    """

    __slots__ = ("bounds", "counts", "total_s")

    def __init__(self, bounds: Sequence[float]) -> None:
        self.bounds = bounds
        self.counts = [0] * (len(bounds) + 1)
        self.total_s = 0.0

    def observe(self, seconds: float, times: int = 1) -> None:
        """Count *times* observations of so many seconds each."""
        self.counts[bisect_left(self.bounds, seconds)] += times
        self.total_s += times * seconds

    def observe_ages(self, ages_us: list[int]) -> None:
        """Count ages in microseconds, in order, as between 0 (clocks differ) and ten years (a date of `-infinity`)."""
        if ages_us[0] < 0 or ages_us[-1] > AGE_US_MAX:
            ages_us = [min(max(0, age), AGE_US_MAX) for age in ages_us]
        before, count = 0, len(ages_us)
        for number in range(bisect_left(self.bounds, ages_us[0] / 1e6), len(self.bounds)):
            up_to = bisect_right(ages_us, self.bounds[number] * 1e6, before)
            self.counts[number] += up_to - before
            before = up_to
            if up_to == count:
                break
        self.counts[-1] += count - before
        self.total_s += sum(ages_us) / 1e6


class Tally:
    """What was done with one category: deliveries, rows that they retired, failures, groups buried, and times."""

    __slots__ = ("buried", "delivered", "failures", "lag", "processing", "queued", "retired")

    def __init__(self) -> None:
        self.delivered = 0
        self.retired = 0
        self.failures = 0
        self.buried = 0
        self.lag = Histogram(AGES_S)
        self.queued = Histogram(AGES_S)
        self.processing = Histogram(WORK_S)


class Meter:
    """
    The tallies of one outbox since the start of the process.

    Attributes:
        timed: Whether anybody will look at the times; they cost a twentieth of the throughput.
        clock_ahead_s: By how much the database's clock, which dates messages, is ahead of ours.
    """

    def __init__(self) -> None:
        self.timed = False
        self.clock_ahead_s = 0.0
        self.categories: dict[int, Tally] = {}

    def of(self, category: int) -> Tally:
        """Return the tally of a category; rows may bear any number, so that beyond a bound all others share one."""
        tally = self.categories.get(category)
        if tally is None:
            number = category if len(self.categories) < CATEGORIES_MAX else OTHERS
            tally = self.categories.setdefault(number, Tally())
        return tally

    def now(self) -> Instant:
        """Tell the time by the database's clock."""
        return int((time.time() + self.clock_ahead_s - _UNIX_OF_INSTANT_0) * 1e6)

    def observe(self, category: int, lags: list[int], waits: list[int], slices: list[tuple[int, float]]) -> None:
        """
        Take in deliveries.

        Args:
            category: Of all of them.
            lags: From the writing of the newest message to the end of each delivery, in microseconds; gets sorted.
            waits: From the writing of the oldest message to the start. May be the same list.
            slices: How many were delivered without a pause, and the seconds that took.
        """
        tally = self.of(category)
        lags.sort()
        if waits is not lags:
            waits.sort()
        tally.lag.observe_ages(lags)
        tally.queued.observe_ages(waits)
        for count, seconds in slices:
            if count > 1 and seconds > 2 * SLICE_S:
                # A receiver that is slow ends its slice: the last one had what goes beyond it.
                tally.processing.observe(SLICE_S / (count - 1), count - 1)
                tally.processing.observe(seconds - SLICE_S)
            else:
                tally.processing.observe(seconds / count, count)

    def total(self, name: str) -> int:
        """Sum up one of the counts over all categories."""
        return sum(getattr(tally, name) for tally in self.categories.values())


@dataclass(slots=True)
class ClaimCounters:
    """Counted since the start: shards claimed, and lost to other drainers; and how many in the last round."""

    claimed: int = 0
    lost: int = 0
    last_batch: int = 0


def cumulated(histogram: Histogram) -> list[tuple[str, float]]:
    """Return (upper bound, how many are not above it), the last bound being `+Inf`."""
    pairs, so_far = [], 0
    for bound, count in zip((*histogram.bounds, float("inf")), histogram.counts, strict=True):
        so_far += count
        pairs.append(("+Inf" if bound == float("inf") else repr(float(bound)), float(so_far)))
    return pairs
