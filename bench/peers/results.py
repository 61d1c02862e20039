"""What was measured, as values: they become JSON and a table, here and in the rest of the harness."""

from __future__ import annotations

import dataclasses
import json
import math
import statistics
from collections.abc import Sequence

NONE = "-"


@dataclasses.dataclass
class Measured:
    """A line: one system at some settings under a load. Lists have an entry for each round; empty: not measured."""

    key: str
    system: str
    version: str
    language: str
    settings: str
    values: dict[str, object]
    documented: str
    load: str
    jobs: int
    jobs_s: list[float] = dataclasses.field(default_factory=list)
    held_jobs_s: list[list[float]] = dataclasses.field(default_factory=list)
    """Round after round while another session holds a snapshot that is older than all of them; a list each time."""
    latency_ms: list[float] = dataclasses.field(default_factory=list)
    """From sending COMMIT until the handler ran, of single messages."""
    commit_ms: list[float] = dataclasses.field(default_factory=list)
    """What the COMMIT of each of these took: a part of the above."""
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def held_ratio(self) -> float | None:
        """The last round's speed against the first's, the median of all times."""
        return statistics.median(found[-1] / found[0] for found in self.held_jobs_s) if self.held_jobs_s else None


@dataclasses.dataclass
class Run:
    """One run of everything."""

    machine: str
    postgresql: str
    rounds: int
    load_average: tuple[float, float]
    """Of one minute, before and after: above what the run itself needs, others were at work."""
    measured: list[Measured] = dataclasses.field(default_factory=list)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Systems that this machine cannot run, and why."""


def percentile(values: Sequence[float], share: float) -> float:
    """Return the smallest value that `share` of them do not exceed."""
    return sorted(values)[math.ceil(share * len(values)) - 1]


def table(run: Run) -> str:
    """Return Markdown."""
    rivals = {measured.load: measured for measured in reversed(run.measured) if measured.system == "outboxd"}
    lines = [
        "| system | version | settings | load | jobs | jobs/s, median | min | max | outboxd is faster by "
        "| held snapshot: last round / first | latency p50, ms | p99, ms | of messages |",
        "|---|---|---|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|",
        *(_line(measured, rivals.get(measured.load)) for measured in run.measured),
    ]
    lines += [
        "",
        f"{run.machine}; PostgreSQL {run.postgresql}; {run.rounds} rounds; load average "
        f"{run.load_average[0]:.1f} before, {run.load_average[1]:.1f} after.",
    ]
    lines += ["", *(_settings(measured) for measured in run.measured if measured.values or measured.documented)]
    notes = [f"- {name}: left out: {why}" for name, why in run.left_out.items()]
    notes += [
        f"- {measured.system}, {measured.settings}: {error}" for measured in run.measured for error in measured.errors
    ]
    return "\n".join([*lines, *(["", *notes] if notes else [])])


def _settings(measured: Measured) -> str:
    values = f" `{json.dumps(measured.values)}`" if measured.values else ""
    source = f" ({measured.documented})" if measured.documented else ""
    return f"- {measured.system}, {measured.settings}, {measured.load}:{values}{source}"


def _line(measured: Measured, rival: Measured | None) -> str:
    cells = [measured.system, measured.version, measured.settings, measured.load, f"{measured.jobs:,}"]
    speeds = measured.jobs_s
    cells += [_number(pick(speeds)) for pick in (statistics.median, min, max)] if speeds else [NONE] * 3
    ratio = statistics.median(rival.jobs_s) / statistics.median(speeds) if rival and rival.jobs_s and speeds else None
    cells.append(NONE if ratio is None else f"{_number(ratio)} x")
    cells.append(NONE if measured.held_ratio is None else f"{measured.held_ratio:.2f}")
    latencies = measured.latency_ms
    cells += [f"{percentile(latencies, share):.1f}" for share in (0.5, 0.99)] if latencies else [NONE] * 2
    cells.append(str(len(latencies)) if latencies else NONE)
    return f"| {' | '.join(cells)} |"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
