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
    """Return the ratios that have a goal; none where the run has nothing to compare with."""
    peers = [line for line in run.measured if line.role == "peer" and not line.beyond]
    tables = [Table(load, "", _throughput(run, load, peers)) for load in ANCESTOR]
    tables.append(Table("Latency", "", _latencies(run, peers, at_most=1)))
    return [table for table in tables if table.series]


def beyond(run: Run) -> list[Table]:
    """Return the same, without goals, beside peers that are tuned beyond what they document."""
    tables = []
    for line in run.measured:
        if line.beyond:
            speed = _ratio(run, line, f"W1, outboxd / a peer ({line.title})")
            tables.append(Table(line.title, f"Not documented: {line.by_trying}.", [*speed, *_latencies(run, [line])]))
    return [table for table in tables if table.series]


def sentences(run: Run) -> list[str]:
    """Say for each percentile of the latency whether outboxd is ahead of every peer."""
    peers = [line for line in run.measured if line.role == "peer" and not line.beyond]
    own, lines = run.own("W1"), []
    for place, name in enumerate(PERCENTILES):
        if own and (nearest := _nearest(own, peers, place)):
            verdict = "yes" if statistics.median(latency_ratios(own, nearest, place)) < 1 else "no"
            figures = [statistics.median(_of_rounds(line, place)) for line in (own, nearest)]
            lines.append(
                f"Latency {name}, ahead of every peer: **{verdict}**, {figures[0]:.2f} ms beside {figures[1]:.2f} of"
                f" {nearest.title}."
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


def _latencies(run: Run, peers: list[Measured], at_most: float | None = None) -> list[Series]:
    own, series = run.own("W1"), []
    for place, name in enumerate(PERCENTILES):
        if own and (nearest := _nearest(own, peers, place)):
            other = "the best peer" if at_most else "a peer"
            values = latency_ratios(own, nearest, place)
            series.append(Series(f"{name}, outboxd / {other} ({nearest.title})", 2, at_most=at_most, values=values))
    return series


def _nearest(own: Measured, peers: list[Measured], place: int) -> Measured | None:
    """Return the peer that outboxd is least ahead of."""
    able = [line for line in peers if latency_ratios(own, line, place)]
    return max(able, key=lambda line: statistics.median(latency_ratios(own, line, place)), default=None)


def _of_rounds(line: Measured, place: int) -> list[float]:
    return [percentiles(values)[place] for values in line.latency_ms if values]
