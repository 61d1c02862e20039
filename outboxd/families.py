"""The metric families of what a process writes and delivers, a daemon's and a producer's alike."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING

from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric

from outboxd.meter import UNKNOWN, cumulated

if TYPE_CHECKING:
    from outboxd.meter import Histogram, Tally

BY_CATEGORY = ("outbox", "category")
TIMED = (*BY_CATEGORY, "synchronous")

Sums = Mapping[tuple[str, str], int]
"""Counts by outbox and category, both by name."""

Tallies = Iterable[tuple[tuple[str, str], "Tally"]]
"""Tallies with their outbox and category, both by name."""

SUMMED = {
    "retired": ("outbox_rows_retired", "Rows deleted after their delivery."),
    "failures": ("outbox_failures", "Deliveries that failed."),
    "buried": ("outbox_buried", "Groups of messages that were buried."),
}
TIMES = {
    "lag": (
        "outbox_processing_lag_seconds",
        "From the writing of the newest row of a group to the end of its delivery.",
    ),
    "queued": (
        "outbox_coalesced_net_queue_time_seconds",
        "From the writing of the oldest row of a group to the start of its delivery.",
    ),
    "processing": ("outbox_coalesced_net_processing_time_seconds", "Time inside the receivers."),
}


def processed(by_daemon: Sums, by_flush: Sums) -> Metric:
    """Build the family of deliveries."""
    family = CounterMetricFamily("outbox_processed", "Coalesced groups delivered.", labels=TIMED)
    for synchronous, sums in (("false", by_daemon), ("true", by_flush)):
        for labels, count in sums.items():
            family.add_metric([*labels, synchronous], count)
    return family


def timed(field: str, by_daemon: Tallies, by_flush: Tallies) -> Metric:
    """Build the family of one of the histograms of a tally."""
    name, text = TIMES[field]
    family = HistogramMetricFamily(name, text, labels=TIMED)
    for synchronous, tallies in (("false", by_daemon), ("true", by_flush)):
        for labels, tally in tallies:
            histogram: Histogram = getattr(tally, field)
            if labels[1] != UNKNOWN:
                family.add_metric([*labels, synchronous], cumulated(histogram), histogram.total_s)
    return family


def summed(field: str, sums: Sums) -> Metric:
    """Build the family of one of the counts of a tally."""
    return _family(*SUMMED[field], sums)


def saved(sums: Sums) -> Metric:
    """Build the family of messages that were written."""
    return _family("outbox_saved", "Messages written by this process.", sums)


def _family(name: str, text: str, sums: Sums) -> Metric:
    family = CounterMetricFamily(name, text, labels=BY_CATEGORY)
    for labels, count in sums.items():
        family.add_metric(labels, count)
    return family


def added(first: Sums, second: Sums) -> dict[tuple[str, str], int]:
    """Add counts up."""
    return {labels: first.get(labels, 0) + second.get(labels, 0) for labels in (*first, *second)}
