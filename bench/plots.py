"""`python -m bench.plots`: pictures of what was measured, from the JSON of a run beside the peers."""

from __future__ import annotations

import argparse
import importlib
import json
import statistics
from collections.abc import Callable
from pathlib import Path
from typing import Any

OWN, OTHER = "#c2410c", "#64748b"
Line = dict[str, Any]


def throughput(axes: Any, lines: list[Line]) -> None:
    """Jobs a second of each system, on a logarithmic scale, with the least and the most of all rounds."""
    lines = sorted((line for line in lines if line["jobs_s"]), key=lambda line: statistics.median(line["jobs_s"]))
    medians = [statistics.median(line["jobs_s"]) for line in lines]
    below = [median - min(line["jobs_s"]) for median, line in zip(medians, lines, strict=True)]
    above = [max(line["jobs_s"]) - median for median, line in zip(medians, lines, strict=True)]
    axes.barh(range(len(lines)), medians, xerr=(below, above), color=[_color(line) for line in lines], capsize=2)
    axes.set_yticks(range(len(lines)), [_name(line) for line in lines])
    for place, median in enumerate(medians):
        axes.text(median, place + 0.3, f"{median:,.0f}", va="center", fontsize=7)
    axes.set_xscale("log")
    axes.set_xlabel("jobs a second, median of all rounds; least and most")


def held_snapshot(axes: Any, lines: list[Line]) -> None:
    """Speed round by round behind a held snapshot, the first round being 1; the median of the times that ended."""
    rounds = 1
    for line in tuned(lines):
        if line["held_jobs_s"]:
            tried = [[speed / speeds[0] for speed in speeds] for speeds in line["held_jobs_s"]]
            shares = [statistics.median(of_round) for of_round in zip(*tried, strict=True)]
            times = "" if len(tried) == line["held_tried"] else f" ({len(tried)} of {line['held_tried']} times)"
            label = _name(line) + times
            axes.plot(range(1, len(shares) + 1), shares, marker="o", label=label, color=_color(line, None))
            rounds = max(rounds, len(shares))
    axes.set_xticks(range(1, 1 + rounds))
    axes.set_ylim(bottom=0)
    axes.set_xlabel("round, while another session holds a snapshot from before")
    axes.set_ylabel("speed, of that in round 1")
    _explain(axes)


def latency(axes: Any, lines: list[Line]) -> None:
    """Which share of single messages was with its handler after so long."""
    for line in tuned(lines):
        values = sorted(value for of_round in line["latency_ms"] for value in of_round)
        if values:
            shares = [(number + 1) / len(values) for number in range(len(values))]
            axes.plot(values, shares, label=_name(line), color=_color(line, None))
    axes.set_xscale("log")
    axes.set_xlabel("ms from COMMIT to handler")
    axes.set_ylabel("share of messages")
    _explain(axes)


PLOTS: dict[str, tuple[Callable[[Any, list[Line]], None], tuple[float, float]]] = {
    "throughput": (throughput, (8, 5)),
    "held-snapshot": (held_snapshot, (8, 4)),
    "latency": (latency, (8, 4)),
}


def tuned(lines: list[Line]) -> list[Line]:
    """Leave out what a system does by default, where all of them in one picture could not be told apart."""
    return [line for line in lines if line["settings"] not in ("defaults", "polling")]


def _explain(axes: Any) -> None:
    if axes.get_legend_handles_labels()[0]:
        axes.legend(fontsize=6)


def _name(line: Line) -> str:
    return f"{line['system']}, {line['settings']}"


def _color(line: Line, other: str | None = OTHER) -> str | None:
    return OWN if line["system"] == "outboxd" else other


def _pyplot() -> Any:
    """Return what draws. It is imported when it is needed: of the benchmarks only this one has use for it."""
    try:
        mpl = importlib.import_module("matplotlib")
    except ModuleNotFoundError:
        raise SystemExit("bench.plots needs matplotlib: pip install -e '.[bench]'") from None
    mpl.use("svg")
    # Texts stay texts, and two runs over the same figures make the same file.
    mpl.rcParams.update({"svg.fonttype": "none", "svg.hashsalt": "outboxd", "figure.constrained_layout.use": True})
    return importlib.import_module("matplotlib.pyplot")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plots", description=__doc__)
    parser.add_argument(
        "run", type=Path, help="JSON of `python -m bench.peers --to FILE.json`; the SVGs are put beside it"
    )
    given = parser.parse_args()
    try:
        lines = [line for line in json.loads(given.run.read_text())["measured"] if line["load"] == "W1"]
    except OSError as exc:
        parser.error(str(exc))
    except (ValueError, KeyError, TypeError):
        parser.error(f"{given.run} is not what `python -m bench.peers --to FILE.json` writes")
    plt = _pyplot()
    for name, (draw, size) in PLOTS.items():
        figure, axes = plt.subplots(figsize=size)
        draw(axes, lines)
        figure.savefig(given.run.with_name(f"{given.run.stem}-{name}.svg"), metadata={"Date": None})
        plt.close(figure)


if __name__ == "__main__":
    main()
