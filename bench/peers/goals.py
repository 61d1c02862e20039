"""What outboxd is to reach beside the others, computed round for round from what was measured."""

from __future__ import annotations

import statistics

from bench.figures import Series, Table, percentiles
from bench.peers.results import Measured, Run, ratios

FASTEST_PEER = 4
FASTEST_PYTHON_PEER = 10
ANCESTOR = {"W1": 100, "W2": 20, "W3": 25}
PERCENTILES = ("p50", "p99")


def goals(run: Run) -> list[Table]:
    """Return the ratios of throughput that have a goal; none where the run has nothing to compare with."""
    peers = [line for line in run.measured if line.role == "peer" and not line.beyond]
    tables = [Table(load, "", _throughput(run, load, peers)) for load in ANCESTOR]
    return [table for table in tables if table.series]


def beyond(run: Run) -> list[Table]:
    """Return the same, without goals, beside peers that are tuned beyond what they document."""
    tables = []
    for line in run.measured:
        if line.beyond:
            speed = _ratio(run, line, f"W1, outboxd / a peer ({line.title})")
            tables.append(Table(line.title, f"Not documented: {line.by_trying}.", [*speed, *_latencies(run, line)]))
    return [table for table in tables if table.series]


def sentences(run: Run) -> list[str]:
    """
    Say for each percentile of the latency whether outboxd is ahead of every peer.

    By the medians of all rounds. Ratios round by round are said, too, but judge nothing: a p99 of one round may be of
    one bad moment, and the ratio to a peer that had several of them in other rounds looks like being ahead of it.
    """
    peers = [line for line in run.measured if line.role == "peer" and not line.beyond]
    own, lines = run.own("W1"), []
    able = [line for line in peers if line.latency_ms]
    if not own or not own.latency_ms or not able:
        return []
    for place, name in enumerate(PERCENTILES):
        soonest = min(able, key=lambda line: _median(line, place))
        figures = _median(own, place), _median(soonest, place)
        values = latency_ratios(own, soonest, place)
        lines.append(
            f"Latency {name}, ahead of every peer: **{'yes' if figures[0] < figures[1] else 'no'}**,"
            f" {figures[0]:.2f} ms beside {figures[1]:.2f} of {soonest.title}; round by round"
            f" {statistics.median(values):.2f} times as long ({min(values):.2f} to {max(values):.2f})."
        )
    return lines


def latency_ratios(own: Measured, other: Measured, place: int) -> list[float]:
    """Return outboxd's percentile against the other's, round for round; below 1: it is sooner."""
    return ratios(_of_rounds(own, place), _of_rounds(other, place))


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


def _latencies(run: Run, peer: Measured) -> list[Series]:
    own = run.own("W1")
    if not own or not own.latency_ms or not peer.latency_ms:
        return []
    return [
        Series(f"{name}, outboxd / a peer ({peer.title})", 2, values=latency_ratios(own, peer, place))
        for place, name in enumerate(PERCENTILES)
    ]


def _median(line: Measured, place: int) -> float:
    return statistics.median(_of_rounds(line, place))


def _of_rounds(line: Measured, place: int) -> list[float]:
    return [percentiles(values)[place] for values in line.latency_ms if values]
