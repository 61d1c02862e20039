"""What was measured, as values: they become JSON here, and Markdown in `report.py`."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence
from typing import TYPE_CHECKING

from bench.figures import percentiles

if TYPE_CHECKING:
    from bench.peers.system import Role


@dataclasses.dataclass
class Measured:
    """A line: one system at some settings under a load. Lists have an entry for each round; empty: not measured."""

    key: str
    system: str
    role: Role
    version: str
    language: str
    settings: str
    values: dict[str, object]
    documented: str
    by_trying: str
    load: str
    jobs: int
    jobs_s: list[float] = dataclasses.field(default_factory=list)
    calls: int | None = None
    """How often the handler was called for as many jobs as were counted."""
    counted: int = 0
    held_jobs_s: list[list[float]] = dataclasses.field(default_factory=list)
    """Round after round while another session holds a snapshot that is older than all of them; a list each time."""
    held_tried: int = 0
    """How many times that was tried: more often than `held_jobs_s` has lists where some did not end."""
    latency_ms: list[list[float]] = dataclasses.field(default_factory=list)
    """From sending COMMIT until the handler ran, of single messages; a list for each round."""
    commit_ms: list[list[float]] = dataclasses.field(default_factory=list)
    """What the COMMIT of each of these took: a part of the above."""
    event_loop: str = ""
    """What it said it ran on, where it is Python."""
    errors: list[str] = dataclasses.field(default_factory=list)

    @property
    def title(self) -> str:
        return f"{self.system}, {self.settings}"

    @property
    def held_ratio(self) -> float | None:
        """The last round's speed against the first's, the median of all times that ended."""
        return statistics.median(found[-1] / found[0] for found in self.held_jobs_s) if self.held_jobs_s else None

    def percentile_of_rounds(self, place: int) -> list[float]:
        """Return a percentile of the latencies, round for round: the 50th (0) or the 99th (1)."""
        return [percentiles(values)[place] for values in self.latency_ms]

    @property
    def messages(self) -> list[float]:
        """The latencies of all rounds."""
        return [value for values in self.latency_ms for value in values]


@dataclasses.dataclass
class Run:
    """One run of everything."""

    date: str
    revision: str
    """Of the repository; with what was changed since, or unknown."""
    machine: str
    postgresql: str
    rounds: int
    load_average: tuple[float, float]
    """Of one minute, before and after: above what the run itself needs, others were at work."""
    is_quick: bool = False
    measured: list[Measured] = dataclasses.field(default_factory=list)
    left_out: dict[str, str] = dataclasses.field(default_factory=dict)
    """Systems that this machine cannot run, and why."""

    @property
    def event_loop(self) -> str:
        """What outboxd ran on."""
        return next((line.event_loop for line in self.measured if line.role == "own" and line.event_loop), "unknown")

    def own(self, load: str) -> Measured | None:
        """Return outboxd's own line that others are compared with: the first, with NOTIFY."""
        return next((line for line in self.measured if line.role == "own" and line.load == load), None)

    def as_json(self) -> dict[str, object]:
        return dataclasses.asdict(self) | {"event_loop": self.event_loop}


def ratios(values: Sequence[float], others: Sequence[float]) -> list[float]:
    """Return round for round how many times the others the values are; of the rounds that both have."""
    return [value / other for value, other in zip(values, others, strict=False)]
