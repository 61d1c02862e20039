"""A run as Markdown: the goals, the table, the latencies, and what each system was set to."""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Sequence

from bench import figures
from bench.figures import EACH_SHARE_SEEN, percentiles
from bench.peers.goals import goals, sentences
from bench.peers.results import Measured, Run, ratios

NONE = "-"


def markdown(run: Run) -> str:
    """Return everything that a reader wants; every figure of every round is in the JSON."""
    parts = [about(run), *_goals(run), table(run), *_calls(run), *_latencies(run), *_settings(run), *_notes(run)]
    return "\n\n".join(parts)


def about(run: Run) -> str:
    before, after = run.load_average
    quick = " **A quick run: its numbers say nothing.**" if run.is_quick else ""
    return (
        f"{run.date}, revision {run.revision}: {run.machine}; PostgreSQL {run.postgresql}; outboxd's event loop:"
        f" {run.event_loop}; rounds: {run.rounds}; load average {before:.1f} before, {after:.1f} after.{quick}"
    )


def table(run: Run) -> str:
    """Return the table of throughput; ratios are made round by round."""
    head = ["system", "version", "settings", "load", "jobs", "jobs/s, median", "min", "max"]
    head += ["outboxd is faster by: median (min to max)", "held snapshot: last round / first"]
    return _table(head, 4, [_line(line, run) for line in run.measured])


def latencies(run: Run) -> str:
    """Return the table of latencies: of all messages, and of each round."""
    head = ["system", "settings", "event loop", "messages", "p50, ms", "of a round: median (min to max)"]
    head += ["p99, ms", "of a round: median (min to max)"]
    return _table(head, 3, [_latency(line) for line in run.measured if line.messages])


def _goals(run: Run) -> list[str]:
    parts = []
    if found := goals(run):
        parts += ["## Goals", "Each figure is made round by round; the verdict is of the median.", figures.goals(found)]
    parts += sentences(run)
    return [*parts, "## Throughput"]


def _line(line: Measured, run: Run) -> list[str]:
    own = run.own(line.load)
    cells = [line.system, line.version, line.settings, line.load, f"{line.jobs:,}"]
    cells += [_number(pick(line.jobs_s)) for pick in (statistics.median, min, max)] if line.jobs_s else [NONE] * 3
    if len(line.jobs_s) < run.rounds:
        cells[-3] += f" ({len(line.jobs_s)} of {run.rounds} rounds)"
    faster_by = ratios(own.jobs_s, line.jobs_s) if own and own is not line else []
    return [*cells, _spread(faster_by, _number, " x"), _held(line)]


def _held(line: Measured) -> str:
    """Say how many times stand behind it, where some did not end."""
    ended, tried = len(line.held_jobs_s), line.held_tried
    share = f"{line.held_ratio:.2f}" if line.held_ratio is not None else "none"
    if not tried:
        return NONE
    return share if ended == tried else f"{share} ({ended} of {tried})"


def _calls(run: Run) -> list[str]:
    lines = [
        f"- {line.title}, {line.load}: {line.counted:,} messages are {line.calls:,} calls of a receiver, so"
        f" {_number(statistics.median(line.jobs_s) * line.calls / line.counted)} calls/s"
        for line in run.measured
        if line.calls is not None and line.calls < line.counted and line.jobs_s
    ]
    whole = sum(line.calls == line.counted > 0 for line in run.measured)
    parts = [f"In a turn in which each job says which one it is, {whole} lines had every job handled once."]
    if lines:
        parts += ["Where messages coalesce, jobs/s are rows that are done with, and calls are fewer:", "\n".join(lines)]
    return parts


def _latencies(run: Run) -> list[str]:
    if not any(line.messages for line in run.measured):
        return []
    note = f"With fewer than {EACH_SHARE_SEEN} messages there is no p99: the figure is then the largest, marked <=."
    return ["## Latency", latencies(run), note]


def _latency(line: Measured) -> list[str]:
    cells = [line.system, line.settings, line.event_loop or NONE, str(len(line.messages))]
    mark = "<= " if len(line.messages) < EACH_SHARE_SEEN else ""
    mark_of_round = "<= " if any(len(values) < EACH_SHARE_SEEN for values in line.latency_ms) else ""
    for place, marks in enumerate((("", ""), (mark, mark_of_round))):
        of_rounds = line.percentile_of_rounds(place)
        cells += [f"{marks[0]}{_ms(percentiles(line.messages)[place])}", marks[1] + _spread(of_rounds, _ms)]
    return cells


def _settings(run: Run) -> list[str]:
    """Return a line for each way to run a system, whatever the load."""
    lines = dict.fromkeys(_setting(line) for line in run.measured)
    return ["## Settings", "\n".join(lines)]


def _setting(line: Measured) -> str:
    values = [f"`{json.dumps(line.values)}`"] if line.values else []
    source = [f"documented: {line.documented}"] if line.documented else []
    tried = [f"found by trying: {line.by_trying}"] if line.by_trying else []
    return f"- {line.title}: {'; '.join([*values, *source, *tried]) or 'nothing is set'}"


def _notes(run: Run) -> list[str]:
    notes = [f"- {name} is left out: {why}" for name, why in run.left_out.items()]
    notes += [f"- {line.title}, {line.load}: {error}" for line in run.measured for error in line.errors]
    return ["## What failed", "\n".join(notes)] if notes else []


def _table(head: Sequence[str], texts: int, rows: list[list[str]]) -> str:
    """Return a table whose first columns are texts and whose others are numbers."""
    rule = ["---"] * texts + ["--:"] * (len(head) - texts)
    return "\n".join(f"| {' | '.join(cells)} |" for cells in (head, rule, *rows))


def _spread(values: Sequence[float], show: Callable[[float], str], unit: str = "") -> str:
    """Return the median with the least and the most, or only it where there is but one."""
    if not values:
        return NONE
    median = f"{show(statistics.median(values))}{unit}"
    return f"{median} ({show(min(values))} to {show(max(values))})" if len(values) > 1 else median


def _number(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _ms(value: float) -> str:
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"
