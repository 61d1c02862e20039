"""What the harness knows of a system: how to install and run it, and the SQL that fills and watches its tables."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from bench.peers.install import Environment

WORKERS = Path(__file__).parent / "workers"
Role = Literal["own", "peer", "ancestor"]


@dataclasses.dataclass(frozen=True)
class Load:
    """A workload's shape; only systems that know shards and coalesce see a difference."""

    name: str
    rows_a_shard: int | None
    """None: all of them in one shard."""
    objects_a_shard: int

    @property
    def coalesces(self) -> bool:
        """Whether a shard has several messages about one object, so there may be fewer deliveries than messages."""
        return self.rows_a_shard is None or self.rows_a_shard > self.objects_a_shard

    def shard_rows(self, jobs: int) -> int:
        return self.rows_a_shard or jobs

    def objects(self, jobs: int) -> int:
        """Return about how many objects so many jobs are, of which the last shard may have fewer."""
        shards, left = divmod(jobs, self.shard_rows(jobs))
        return shards * min(self.objects_a_shard, self.shard_rows(jobs)) + min(left, self.objects_a_shard)


W1 = Load("W1", rows_a_shard=10, objects_a_shard=10)
W1_LONG = Load("W1 x 10", rows_a_shard=10, objects_a_shard=10)
"""W1 with ten times as many messages: a speed that is held for seconds."""
W2 = Load("W2", rows_a_shard=100, objects_a_shard=10)
W3 = Load("W3", rows_a_shard=None, objects_a_shard=100)


@dataclasses.dataclass(frozen=True)
class Settings:
    """One way to run a system."""

    name: str
    """`defaults`, `tuned`: the best for throughput of what its documentation names; or whose numbers they are."""
    jobs: int
    """How many make a round: of a peer some seconds, of outboxd less than one."""
    values: Mapping[str, object] = dataclasses.field(default_factory=dict)
    documented: str = ""
    """Where the settings are recommended or described."""
    by_trying: str = ""
    """What of them the documentation leaves open."""
    loads: tuple[Load, ...] = (W1,)
    pause_s: float = 0.03
    """Single messages are at most so far apart: where a system polls, its interval, so they meet every phase of it."""
    latency: bool = True
    """False: what starts a run lies outside of the system, so a latency would be the harness's own."""
    held: bool = True
    """False: not measured beside a held snapshot."""


@dataclasses.dataclass(frozen=True)
class Statements:
    """SQL on the system's tables, as its own API or documentation writes it."""

    fill: str
    """Puts {jobs} jobs in with one transaction; may also name {shard_rows} and {shard_objects}."""
    enqueue: str
    """Puts in one job whose payload says $1 (bigint), and wakes the worker as the system's own API does."""
    base: str
    """A value that only what is put in from now on is above."""
    undone: str
    """
    Tells whether anything above $1 is not done; nothing or false: all is. Asked every few milliseconds, so it begins
    where the last job lies: at the other end of the index it would read all that died since. A scalar subquery, never
    EXISTS: that one forgets its ORDER BY.
    """
    left: str
    """Counts what was not done well. Asked once, after the clock has stopped."""
    vacuum: str
    """The tables, for VACUUM."""

    def filled(self, load: Load, jobs: int) -> str:
        return self.fill.format(jobs=jobs, shard_rows=load.shard_rows(jobs), shard_objects=load.objects_a_shard)


@dataclasses.dataclass(frozen=True)
class System:
    """One that is measured."""

    key: str
    name: str
    package: str | None
    """The distribution whose version is shown; None: it is ours, and has none."""
    environment: Environment
    program: Path
    """Runs as `program setup|work SETTINGS` in the environment; `workers/worker.py` says what is expected of it."""
    settings: tuple[Settings, ...]
    statements: Statements
    role: Role = "peer"
    ready: str = "ready"
    """What the line has in it by which the process says that it takes jobs."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A line of the table: a system at some settings under a load."""

    system: System
    settings: Settings
    load: Load

    @property
    def key(self) -> str:
        """Also the name of its database: letters and underscores."""
        return f"{self.system.key}_{self.settings.name}_{self.load.name}".lower().replace("-", "_").replace(" ", "_")

    @property
    def latency(self) -> bool:
        """Whether single messages are timed: once for all loads of a system."""
        return self.settings.latency and self.load.name == "W1"

    @property
    def held(self) -> bool:
        """Whether it is measured behind a held snapshot. At defaults nobody is: the slow would take half of the run."""
        return self.settings.held and self.settings.name != "defaults" and self.load.name == "W1"

    @property
    def title(self) -> str:
        return f"{self.system.name}, {self.settings.name}"


def entries(systems: list[System]) -> list[Entry]:
    return [
        Entry(system, settings, load) for system in systems for settings in system.settings for load in settings.loads
    ]
