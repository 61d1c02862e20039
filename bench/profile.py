"""
Where the time of one workload goes: `python -m bench.profile W1`.

Processor time of this process and of the server, the server's by statement (pg_stat_statements), and this process's by
function, from a timer of its processor time. What is written in C counts for the function that calls it.
"""

from __future__ import annotations

import argparse
import asyncio
import collections
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING

import psutil

from bench import failing, stage
from bench.drain import LOADS
from outboxd import log

if TYPE_CHECKING:
    from types import FrameType

    import asyncpg

ROUNDS = 5
LINES = 14
SAMPLE_S = 0.001
ROOT = Path(__file__).parent.parent
STATEMENTS = """
SELECT query, calls, total_exec_time + total_plan_time AS ms, total_plan_time AS plan_ms, rows
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
ORDER BY ms DESC
"""


class Sampler:
    """Counts what this process is at, each millisecond of processor time, while the block lasts."""

    def __init__(self) -> None:
        self.functions: collections.Counter[str] = collections.Counter()

    def __enter__(self) -> Sampler:
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)

    def _look(self, _number: int, frame: FrameType | None) -> None:
        if frame is not None:
            self.functions[_place(frame)] += 1


def _place(frame: FrameType) -> str:
    code = frame.f_code
    path = Path(code.co_filename)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT / "outboxd") else path.name
    return f"{name} {code.co_qualname}"


async def _profile(name: str) -> None:
    load, receiver, retired = LOADS["W1" if name == "W7" else name][0], stage.accept, None
    if name == "W7":
        receiver, retired = failing.fail_often, failing.count_healthy(load)
    settings = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_planning": "on"}
    async with stage.server(**settings) as (dsn, connection):
        await connection.execute("CREATE EXTENSION pg_stat_statements")
        seconds, own, servers, samples = 0.0, 0.0, 0.0, collections.Counter[str]()
        for number in range(ROUNDS + 1):
            await connection.execute("TRUNCATE outbox_drained, outboxd.failure")
            await connection.execute("VACUUM (ANALYZE) outbox_drained")
            failing.forget()
            async with stage.daemon(dsn, receiver) as daemon:
                if number == 1:
                    await connection.execute("SELECT pg_stat_statements_reset()")
                before = time.process_time(), _server_cpu(dsn)
                with Sampler() as sampler:
                    done = await daemon.retire(connection, load.fill("outbox_drained"), retired or load.rows)
                if number:
                    seconds += done.seconds
                    own += time.process_time() - before[0]
                    servers += _server_cpu(dsn) - before[1]
                    samples += sampler.functions
        rows = (retired or load.rows) * ROUNDS
        print(f"{name}: {rows / seconds:,.0f} rows/s; µs a row: {1e6 * seconds / rows:.2f} by the clock, ", end="")
        print(f"{1e6 * own / rows:.2f} of this process, {1e6 * servers / rows:.2f} of the server (with the INSERT)\n")
        await _show_statements(connection, rows)
        _show_functions(samples)


def _server_cpu(dsn: str) -> float:
    """Processor seconds of every process of the server."""
    directory = dsn.partition("host=")[2].partition("&")[0]
    found = 0.0
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if directory in " ".join(process.info["cmdline"] or []):
            for each in (process, *process.children()):
                times = each.cpu_times()
                found += times.user + times.system
    return found


async def _show_statements(connection: asyncpg.Connection, rows: int) -> None:
    print("| statement | calls | ms | of which planning | ns a row of the load |\n|---|--:|--:|--:|--:|")
    for row in (await connection.fetch(STATEMENTS))[:LINES]:
        text = " ".join(row["query"].split())[:70].replace("|", "\\|")
        print(f"| `{text}` | {row['calls']} | {row['ms']:.0f} | {row['plan_ms']:.0f} | {1e6 * row['ms'] / rows:.0f} |")


def _show_functions(samples: collections.Counter[str]) -> None:
    total = samples.total()
    print("\n| function | share of the samples |\n|---|--:|")
    for place, count in samples.most_common(LINES):
        print(f"| {place} | {100 * count / total:.1f} % |")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("name", choices=[*LOADS, "W7"])
    log.configure("json", "error")
    asyncio.run(_profile(parser.parse_args().name))


if __name__ == "__main__":
    main()
