"""
outboxd beside its peers: throughput, the same while a snapshot is held, and the latency of single messages.

All run in turn on one embedded PostgreSQL with default durability, each in a database of its own, so the ratios mean
something where absolute numbers do not. See `bench/peers/README.md` for the method and for results.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import datetime
import os
import statistics
import sys
from collections.abc import Awaitable, Callable
from typing import TypeVar

import asyncpg

from bench import command_line
from bench.about import commit, machine
from bench.errors import TROUBLE
from bench.kept import keep, result_file
from bench.peers.install import UnavailableError
from bench.peers.measure import Bench, open_bench
from bench.peers.report import markdown
from bench.peers.results import Measured, Run
from bench.peers.system import Entry, System, entries
from bench.peers.systems import SYSTEMS
from outboxd.embedded import embedded_postgres

T = TypeVar("T")

SERVER = {"shared_buffers": "1GB", "max_wal_size": "8GB", "max_connections": 200}
HELD_ROUNDS = 5
LATENCY_MESSAGES = 500
COUNTED_MAX = 100_000


@dataclasses.dataclass(frozen=True)
class Amounts:
    """How much is measured."""

    rounds: int
    held_times: int
    held_rounds: int
    messages: int
    """Single messages of a round; fewer where they would take longer than `messages_s`."""
    messages_s: float
    jobs_max: int
    warm_up_rounds: int = 1
    is_quick: bool = False

    def jobs(self, entry: Entry) -> int:
        return min(entry.settings.jobs, self.jobs_max)


class Runner:
    """All entries taking turns, and what came of each; `save` is called whenever one has had its turn."""

    def __init__(self, run: Run, amounts: Amounts, save: Callable[[Run], None]) -> None:
        self.run = run
        self.amounts = amounts
        self._save = save
        self._lines: list[tuple[Bench, Measured]] = []
        self._given_up: set[tuple[str, str]] = set()
        """Entries and measures that failed in a round: to wait for them again would take time from the others."""

    async def open(self, chosen: list[Entry], dsn: str) -> None:
        for entry in chosen:
            measured = _measured(entry, self.amounts.jobs(entry))
            self.run.measured.append(measured)
            try:
                self._lines.append((await open_bench(entry, dsn), measured))
            except TROUBLE as exc:
                _fail(measured, "set-up", exc)

    async def measure(self) -> None:
        """Round 0 only warms caches: it is not counted."""
        for number in range(1 - self.amounts.warm_up_rounds, self.amounts.rounds + 1):
            for bench, measured in self._lines:
                await self._throughput(bench, measured, number)
                if bench.entry.latency:
                    await self._latency(bench, measured, number)
                self._save(self.run)
        for bench, measured in self._lines:
            await self._calls(bench, measured)
            self._save(self.run)
        for _ in range(self.amounts.held_times):
            for bench, measured in self._lines:
                if bench.entry.held:
                    await self._held(bench, measured)
                    self._save(self.run)

    async def close(self) -> None:
        for bench, _ in self._lines:
            await bench.close()

    async def _throughput(self, bench: Bench, measured: Measured, number: int) -> None:
        speed = await self._tried(measured, "throughput", number, bench, lambda: bench.throughput(measured.jobs))
        if speed is not None and number:
            measured.jobs_s.append(speed)
            _say(f"round {number}: {bench.entry.key}: {speed:,.0f} jobs/s")

    async def _latency(self, bench: Bench, measured: Measured, number: int) -> None:
        messages, seconds = self.amounts.messages, self.amounts.messages_s
        found = await self._tried(measured, "latency", number, bench, lambda: bench.latency(messages, seconds))
        if found and number:
            measured.event_loop = bench.event_loop
            measured.latency_ms.append([ran for ran, _ in found])
            measured.commit_ms.append([commit for _, commit in found])
            middle = statistics.median(ran for ran, _ in found)
            _say(f"round {number}: {bench.entry.key}: {middle:.1f} ms, median of {len(found)} messages")

    async def _calls(self, bench: Bench, measured: Measured) -> None:
        jobs = min(measured.jobs, COUNTED_MAX)
        measured.calls = await self._tried(measured, "calls", 1, bench, lambda: bench.calls(jobs))
        if measured.calls is not None:
            measured.counted = jobs
            _say(f"{bench.entry.key}: {measured.calls:,} calls for {jobs:,} jobs")

    async def _held(self, bench: Bench, measured: Measured) -> None:
        """Tried every time: that it did not end once says little of the next time."""
        rounds = self.amounts.held_rounds
        measured.held_tried += 1
        what = f"held snapshot, time {measured.held_tried}"
        found = await self._tried(measured, what, 1, bench, lambda: bench.held(measured.jobs, rounds))
        if found:
            measured.held_jobs_s.append(found)
            _say(f"snapshot held: {bench.entry.key}: {', '.join(f'{speed:,.0f}' for speed in found)} jobs/s")

    async def _tried(
        self, measured: Measured, what: str, number: int, bench: Bench, work: Callable[[], Awaitable[T]]
    ) -> T | None:
        """
        Return None where a system fails: it is named, and the others go on.

        That measure of it is given up, unless it was the round that is not counted: those that are counted begin with
        the first, so that ratios are of the same rounds.
        """
        if (measured.key, what) in self._given_up:
            return None
        try:
            return await work()
        except TROUBLE as exc:
            if number:
                self._given_up.add((measured.key, what))
            _fail(measured, what if number else f"{what}, warm-up", exc)
            await bench.clear()
            return None


def _measured(entry: Entry, jobs: int) -> Measured:
    environment = entry.system.environment
    return Measured(
        key=entry.key,
        system=entry.system.name,
        role=entry.system.role,
        version=environment.version(entry.system.package) if entry.system.package else "",
        language=environment.language,
        settings=entry.settings.name,
        values=dict(entry.settings.values),
        documented=entry.settings.documented,
        by_trying=entry.settings.by_trying,
        load=entry.load.name,
        jobs=jobs,
    )


def _fail(measured: Measured, what: str, exc: BaseException) -> None:
    measured.errors.append(f"{what}: {exc}")
    _say(f"{measured.key}: {measured.errors[-1]}")


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def install(systems: list[System]) -> tuple[list[System], dict[str, str]]:
    """Return the systems that can be run here, and why the others cannot."""
    able, left_out = [], {}
    for system in systems:
        _say(f"installing {system.name}")
        try:
            system.environment.install()
            able.append(system)
        except UnavailableError as exc:
            left_out[system.name] = str(exc)
            _say(f"{system.name} is left out: {exc}")
    return able, left_out


async def measure(able: list[System], left_out: dict[str, str], amounts: Amounts, save: Callable[[Run], None]) -> Run:
    date, revision = datetime.datetime.now(datetime.UTC).date().isoformat(), commit()
    async with embedded_postgres(settings=SERVER) as dsn:
        connection = await asyncpg.connect(dsn)
        version = await connection.fetchval("SHOW server_version")
        await connection.close()
        load = os.getloadavg()[0]
        run = Run(date, revision, machine(), version, amounts.rounds, (load, load), amounts.is_quick, left_out=left_out)
        runner = Runner(run, amounts, save)
        await runner.open(entries(able), dsn)
        try:
            await runner.measure()
        finally:
            await runner.close()
    return run


def main() -> None:
    keys = list(dict.fromkeys(system.key for system in SYSTEMS))
    parser = argparse.ArgumentParser(prog="python -m bench.peers", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(keys)}; default: all")
    parser.add_argument("--rounds", type=command_line.rounds, default=5, help="of each figure (5)")
    parser.add_argument("--quick", action="store_true", help="one round of at most 1,000 jobs: does everything work?")
    parser.add_argument(
        "--to",
        type=result_file,
        metavar="FILE.json",
        help="write the figures of every round to this file, Markdown beside it",
    )
    options = parser.parse_args()
    names = command_line.chosen(parser, options.names, keys)
    chosen = [system for system in SYSTEMS if system.key in {"outboxd", *names}]
    messages = max(1, LATENCY_MESSAGES // options.rounds)
    amounts = Amounts(options.rounds, options.rounds, HELD_ROUNDS, messages, messages_s=8.0, jobs_max=1_000_000)
    if options.quick:
        amounts = Amounts(
            1, 1, held_rounds=2, messages=10, messages_s=2.0, jobs_max=1_000, warm_up_rounds=0, is_quick=True
        )

    is_kept = True

    def save(run: Run) -> None:
        nonlocal is_kept
        run.load_average = (run.load_average[0], os.getloadavg()[0])
        if options.to:
            is_kept &= keep(options.to, run.as_json(), markdown(run))

    with command_line.without_traceback():
        able, left_out = install(chosen)
        if options.names and left_out:  # without a name the machine decides
            raise SystemExit("\n".join(f"{name} cannot be had: {why}" for name, why in left_out.items()))
        run = asyncio.run(measure(able, left_out, amounts, save))
    save(run)
    print(markdown(run))
    if not is_kept:
        raise SystemExit(1)


if __name__ == "__main__":
    main()
