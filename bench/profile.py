"""
Where the time of a workload goes: `python -m bench.profile W1 W7`.

By the clock; processor time of this process, by function, from a timer of its processor time (what is written in C
counts for the function that calls it, or that runs next); and the server's time, by statement (pg_stat_statements, by
the clock too).
"""

from __future__ import annotations

import argparse
import collections
import contextlib
import dataclasses
import signal
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bench import command_line, failing, snapshot, stage, waiting
from bench.about import commit
from bench.drain import LOADS, VARIANTS
from bench.load import Load, every_shard
from outboxd.config import DrainConfig
from outboxd.main import run_in_loop

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import FrameType

    import asyncpg

ROUNDS = 5
LINES = 12
SAMPLE_S = 0.001
ROOT = Path(__file__).parent.parent
STATEMENTS = """
SELECT query, calls, total_exec_time + total_plan_time AS ms, total_plan_time AS plan_ms
FROM pg_stat_statements
WHERE dbid = (SELECT oid FROM pg_database WHERE datname = current_database())
    AND query NOT ILIKE ALL ($1::text[])
ORDER BY ms DESC
"""
OURS = ("%INSERT INTO outbox_drained%", "%TRUNCATE%", "%VACUUM%", "%pg_stat%", "%pg_wal_lsn_diff%", "%SHOW%")
"""What the harness itself does."""


@dataclasses.dataclass(frozen=True)
class Profiled:
    """A workload: its load, its receiver, how many at once, which shards are waited for, behind a snapshot or not."""

    load: Load
    receiver: Callable[..., Any] = stage.accept
    concurrency: int = 5
    within: Callable[[int], bool] = every_shard
    held: bool = False


W1 = LOADS["W1"][0]
PROFILED = {
    **{name: Profiled(load) for name, (load, _) in (LOADS | VARIANTS).items()},
    "W5": Profiled(W1, held=True),
    "W6": Profiled(Load(1_000, 10, 10), waiting.wait, 50),
    "W7": Profiled(W1, failing.fail_often, within=failing.is_healthy),
}


class Sampler:
    """Counts what this process is at, each millisecond of processor time, while the block lasts; and that time."""

    def __init__(self) -> None:
        self.functions: collections.Counter[str] = collections.Counter()
        self.seconds = 0.0

    def __enter__(self) -> Sampler:
        self.seconds -= time.process_time()
        signal.signal(signal.SIGPROF, self._look)
        signal.setitimer(signal.ITIMER_PROF, SAMPLE_S, SAMPLE_S)
        return self

    def __exit__(self, *_: object) -> None:
        signal.setitimer(signal.ITIMER_PROF, 0)
        self.seconds += time.process_time()

    def _look(self, _number: int, frame: FrameType | None) -> None:
        if frame is not None:
            self.functions[_place(frame)] += 1


def _place(frame: FrameType) -> str:
    code = frame.f_code
    path = Path(code.co_filename)
    name = path.relative_to(ROOT) if path.is_relative_to(ROOT / "outboxd") else path.name
    return f"{name} {code.co_qualname}"


async def tidy(connection: asyncpg.Connection, profiled: Profiled) -> None:
    """Let nothing of one round be left for the next, except what a snapshot holds."""
    failing.forget()
    if not profiled.held:
        await connection.execute("TRUNCATE outbox_drained, outboxd.failure")
    await connection.execute("VACUUM (ANALYZE) outbox_drained")


async def _profile(name: str) -> None:
    profiled = PROFILED[name]
    load = profiled.load
    settings = {"shared_preload_libraries": "pg_stat_statements", "pg_stat_statements.track_planning": "on"}
    async with contextlib.AsyncExitStack() as stack:
        dsn, connection = await stack.enter_async_context(stage.server(**settings))
        await connection.execute("CREATE EXTENSION pg_stat_statements")
        seconds, own, samples = 0.0, 0.0, collections.Counter[str]()
        for number in range(ROUNDS + 1):
            if number == 1:
                await connection.execute("SELECT pg_stat_statements_reset()")
                if profiled.held:
                    await stack.enter_async_context(snapshot.hold(dsn))
            await tidy(connection, profiled)
            drain = DrainConfig(concurrency=profiled.concurrency)
            async with stage.daemon(dsn, profiled.receiver, drain=drain) as daemon:
                sampler = Sampler()
                done = await daemon.retire(connection, load, within=profiled.within, during=sampler)
                if number:
                    seconds += done.seconds
                    own += sampler.seconds
                    samples += sampler.functions
        await _show(name, load, connection, seconds, own, load.rows_of(profiled.within) * ROUNDS)
        _show_functions(samples)


async def _show(name: str, load: Load, connection: asyncpg.Connection, seconds: float, own: float, rows: int) -> None:
    statements = await connection.fetch(STATEMENTS, OURS)
    server_ms = sum(row["ms"] for row in statements)
    print(f"**{name}.** {load}: {rows / seconds:,.0f} rows/s. µs of a row: ", end="")
    print(f"{1e6 * seconds / rows:.2f} by the clock, {1e6 * own / rows:.2f} of this process", end=", ")
    print(f"{1e3 * server_ms / rows:.2f} of the server.\n")
    print("| statement | calls | ms | of which planning | µs of a row |\n|---|--:|--:|--:|--:|")
    for row in statements[:LINES]:
        text = " ".join(row["query"].split())[:70].replace("|", "\\|")
        print(f"| `{text}` | {row['calls']} | {row['ms']:.0f} | {row['plan_ms']:.0f} | {1e3 * row['ms'] / rows:.2f} |")


def _show_functions(samples: collections.Counter[str]) -> None:
    total = samples.total()
    print("\n| function | share of the samples |\n|---|--:|")
    for place, count in samples.most_common(LINES):
        print(f"| {place} | {100 * count / total:.1f} % |")
    print(flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.profile", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROFILED)}; all when none is named")
    names = command_line.chosen(parser, parser.parse_args().names, PROFILED)
    print(f"outboxd at {commit()}, {ROUNDS} rounds of each.\n")
    with command_line.without_traceback(), stage.log_to_a_file():
        for name in names:
            run_in_loop(_profile(name))


if __name__ == "__main__":
    main()
