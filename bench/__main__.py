"""`python -m bench`: every workload, beside its floor, into tables and JSON."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import importlib
import os
import time
from typing import TYPE_CHECKING

from bench import command_line, figures, stage
from bench.about import commit, machine
from bench.errors import TROUBLE, described
from bench.kept import keep, result_file
from bench.options import Options
from outboxd import log
from outboxd.main import run_in_loop

if TYPE_CHECKING:
    from pathlib import Path

    from bench.figures import Table

SUITES = {
    "drain": "W0 to W3: rows/s in four shapes of load",
    "finding": "W4: finding due shards among many that wait",
    "snapshot": "W5: a snapshot that is held",
    "waiting": "W6: receivers that wait",
    "failing": "W7: receivers that fail",
    "steady": "W8: a steady load",
    "latency": "W9: from commit to receiver",
    "several": "W10: several daemons",
    "memory": "resident memory beside ten million rows",
    "backfill": "how fast a backfill writes",
    "produce": "what it costs to write messages",
}

QUICK = " **A quick run, with smaller loads: its numbers say little.**"


@dataclasses.dataclass
class Run:
    """What was measured until now."""

    options: Options
    to: Path | None
    tables: list[Table] = dataclasses.field(default_factory=list)
    failed: dict[str, str] = dataclasses.field(default_factory=dict)
    """Suites that did not come to their end, and why."""
    is_kept: bool = True
    """Whether the figures could be written whenever they were to be."""

    async def measure(self, names: list[str]) -> None:
        started_at, load_before = time.monotonic(), os.getloadavg()[0]
        revision = commit()
        loop = f"{type(asyncio.get_running_loop()).__module__}'s event loop"
        postgresql = await stage.version()
        for name in names:
            await self._suite(name)
            about = (
                f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, outboxd at {revision}: {machine()},"
                f" PostgreSQL {postgresql}, {loop}; rounds: {self.options.rounds},"
                f" minutes: {(time.monotonic() - started_at) / 60:.0f}; load average {load_before:.1f} before,"
                f" {os.getloadavg()[0]:.1f} after.{QUICK if self.options.quick else ''}"
            )
            self._keep(about)  # after each suite: what fails late must not lose an hour
        print(figures.goals(self.tables))
        print("\n".join(["", about, *self._failures()]))

    async def _suite(self, name: str) -> None:
        try:
            found = await importlib.import_module(f"bench.{name}").measure(self.options)
        except* TROUBLE as group:
            self.failed[name] = described(group)
            self.options.say(f"{name} failed: {self.failed[name]}")
            found = []
        for table in found:
            print(table.markdown(), flush=True)
            self.tables.append(table)

    def _keep(self, about: str) -> None:
        if self.to:
            values = {"about": about, "tables": list(map(dataclasses.asdict, self.tables)), "failed": self.failed}
            parts = [about, *self._failures(), "", figures.goals(self.tables), ""]
            self.is_kept &= keep(self.to, values, "\n".join([*parts, *(table.markdown() for table in self.tables)]))

    def _failures(self) -> list[str]:
        return [f"- {name} failed: {why}" for name, why in self.failed.items()]


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="\n".join(f"{name:10} {about}" for name, about in SUITES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure; all of it when nothing is named")
    parser.add_argument("--rounds", type=command_line.rounds, default=5, help="of each figure (5)")
    parser.add_argument("--quick", action="store_true", help="smaller loads")
    parser.add_argument(
        "--to",
        type=result_file,
        metavar="FILE.json",
        help="write the figures of every round to this file, tables beside it",
    )
    given = parser.parse_args()
    names = command_line.chosen(parser, given.names, SUITES)
    log.configure("json", "warning")
    run = Run(Options(rounds=given.rounds, quick=given.quick), given.to)
    with command_line.without_traceback():
        run_in_loop(run.measure(names))
    if run.failed or not run.is_kept:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
