"""What outboxd is to reach beside the others, computed round for round from what was measured."""

from __future__ import annotations

import statistics

from bench.figures import Series, Table
from bench.peers.results import Measured, Run, ratios

FASTEST_PEER = 4
FASTEST_PYTHON_PEER = 10
ANCESTOR = {"W1": 100, "W2": 20, "W3": 25}
PERCENTILES = ("p50", "p99")


def goals(run: Run) -> list[Table]:
    """Return the ratios of throughput that have a goal; none where the run has nothing to compare with."""
    peers = [line for line in run.measured if line.role == "peer"]
    tables = [Table(load, "", _throughput(run, load, peers)) for load in ANCESTOR]
    return [table for table in tables if table.series]


def sentences(run: Run) -> list[str]:
    """
    Say for each percentile of the latency whether outboxd is ahead of every peer.

    By the medians of all rounds. Ratios round by round are said, too, but judge nothing: a p99 of one round may be of
    one bad moment, and the ratio to a peer that had several of them in other rounds looks like being ahead of it.
    """
    own = run.own("W1")
    peers = [line for line in run.measured if line.role == "peer" and line.latency_ms]
    if not own or not own.latency_ms or not peers:
        return []
    return [_ahead(own, peers, place) for place in range(len(PERCENTILES))]


def _ahead(own: Measured, peers: list[Measured], place: int) -> str:
    def median(line: Measured) -> float:
        return statistics.median(line.percentile_of_rounds(place))

    soonest = min(peers, key=median)
    values = _latency_ratios(own, soonest, place)
    return (
        f"Latency {PERCENTILES[place]}, ahead of every peer: **{'yes' if median(own) < median(soonest) else 'no'}**,"
        f" {median(own):.2f} ms beside {median(soonest):.2f} of {soonest.title}; round by round"
        f" {statistics.median(values):.2f} times as long ({min(values):.2f} to {max(values):.2f})."
    )


def _latency_ratios(own: Measured, other: Measured, place: int) -> list[float]:
    """Return outboxd's percentile against the other's, round for round; below 1: it is sooner."""
    return ratios(own.percentile_of_rounds(place), other.percentile_of_rounds(place))


def _throughput(run: Run, load: str, peers: list[Measured]) -> list[Series]:
    fastest = _fastest([line for line in peers if line.load == load])
    python = _fastest([line for line in peers if line.load == load and line.language.startswith("Python")])
    ancestor = next((line for line in run.measured if line.role == "ancestor" and line.load == load), None)
    return [
        *_ratio(run, fastest, f"outboxd / the fastest peer ({fastest and fastest.title})", FASTEST_PEER),
        *_ratio(run, python, f"outboxd / the fastest Python peer ({python and python.title})", FASTEST_PYTHON_PEER),
        *_ratio(run, ancestor, "outboxd / the ancestor's algorithm", ANCESTOR[load]),
    ]


def _fastest(lines: list[Measured]) -> Measured | None:
    return max((line for line in lines if line.jobs_s), key=lambda line: statistics.median(line.jobs_s), default=None)


def _ratio(run: Run, other: Measured | None, label: str, at_least: float | None = None) -> list[Series]:
    own = run.own(other.load) if other else None
    values = ratios(own.jobs_s, other.jobs_s) if own and other else []
    return [Series(label, 2, at_least=at_least, values=values)] if values else []
