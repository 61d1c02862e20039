"""
The measures: throughput, the same round after round while a snapshot is held, the latency of single messages; and how
often a handler is called where messages coalesce.

Each starts the system's worker and ends it, so that nobody else's is awake.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
import time
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg

from bench.errors import FailedError
from bench.peers.process import Worker, running, set_up

if TYPE_CHECKING:
    from bench.peers.system import Entry, Load

POLL_S = 0.005
WARM_UP_SHARE = 0.1
ROUND_S_MAX = 60.0
MESSAGE_S_MAX = 15.0
WARM_UP_MESSAGES = 3
# The harness asks along the index and nothing else, whatever the statistics of a table say that was empty just now.
POLL_SETTINGS = {"enable_seqscan": "off", "enable_bitmapscan": "off", "enable_sort": "off", "jit": "off"}


class Bench:
    """An entry's database, and the harness's connection to it."""

    def __init__(self, entry: Entry, dsn: str, connection: asyncpg.Connection) -> None:
        self.entry = entry
        self.event_loop = ""
        """What the worker runs on, where it has said so."""
        self._statements = entry.system.statements
        self._dsn = dsn
        self._connection = connection

    async def throughput(self, jobs: int) -> float:
        """
        Return jobs a second, from the commit of the jobs until none is left undone.

        The worker is up, warm and idle: it has just done a tenth as many, so what a process does but once (a compiler
        that has to see code run, plans, connections) is not counted.
        """
        await self._vacuum()
        async with running(self.entry, self._dsn) as worker:
            await self._drained(worker, int(jobs * WARM_UP_SHARE))
            speed = jobs / await self._drained(worker, jobs)
        await self._check()
        return speed

    async def held(self, jobs: int, rounds: int) -> list[float]:
        """
        Return jobs a second of rounds while another session holds a snapshot that is older than all of them.

        One worker does them all: one that is started anew has to find its place among what is dead. Nothing is vacuumed
        or analysed meanwhile: it would free nothing, and tell every planner that a table is empty which soon is not.
        """
        await self._vacuum()
        async with running(self.entry, self._dsn) as worker:
            await self._drained(worker, int(jobs * WARM_UP_SHARE))
            async with self._held_snapshot():
                found = [jobs / await self._drained(worker, jobs) for _ in range(rounds)]
        await self._check()
        return found

    async def latency(self, messages: int, seconds_max: float) -> list[tuple[float, float]]:
        """
        Return milliseconds from sending COMMIT until the handler ran, and those until COMMIT was answered.

        One message at a time, into an idle worker. It ends early when the time is up, which begins after the warm-up.
        """
        await self._vacuum()
        found: list[tuple[float, float]] = []
        statement = await self._connection.prepare(self._statements.enqueue)
        async with running(self.entry, self._dsn, timed=True) as worker:
            for number in range(WARM_UP_MESSAGES):
                await self._message(worker, statement, number)
            deadline = time.monotonic() + seconds_max
            for number in range(WARM_UP_MESSAGES, WARM_UP_MESSAGES + messages):
                await asyncio.sleep(random.uniform(0, self.entry.settings.pause_s))
                found.append(await self._message(worker, statement, number))
                if time.monotonic() > deadline:
                    break
            self.event_loop = worker.event_loop
        return found

    async def calls(self, jobs: int) -> int:
        """Return how often the handler is called for that many jobs, each of which says which it is; no clock runs."""
        await self._vacuum()
        async with running(self.entry, self._dsn, timed=True) as worker:
            await self._drained(worker, jobs)
        await self._check()
        numbers = [worker.ran.get_nowait()[0] for _ in range(worker.ran.qsize())]
        check_calls(numbers, self.entry.load, jobs)
        return len(numbers)

    async def clear(self) -> None:
        """After a failure: what it left is not the next measure's."""
        await self._connection.execute(f"TRUNCATE {self._statements.vacuum} CASCADE")

    async def close(self) -> None:
        await self._connection.close()

    @contextlib.asynccontextmanager
    async def _held_snapshot(self) -> AsyncIterator[None]:
        """Keep a snapshot of this database open inside the block, as a long report does."""
        other = await asyncpg.connect(self._dsn)
        try:
            async with other.transaction(isolation="repeatable_read", readonly=True):
                await other.fetchval("SELECT 1")  # takes the snapshot, and locks no table
                yield
        finally:
            await other.close()

    async def _check(self) -> None:
        if left := await self._connection.fetchval(self._statements.left):
            raise FailedError(f"{left} jobs were left behind, or failed")

    async def _vacuum(self) -> None:
        await self._connection.execute(f"VACUUM (ANALYZE) {self._statements.vacuum}")

    async def _drained(self, worker: Worker, jobs: int) -> float:
        """Put the jobs in and return the seconds until they are done."""
        if not jobs:
            return 0.0
        base = await self._connection.fetchval(self._statements.base)
        undone = await self._connection.prepare(self._statements.undone)
        await self._connection.execute(self._statements.filled(self.entry.load, jobs))
        started_at = time.perf_counter()
        while await undone.fetchval(base):
            worker.check()
            if time.perf_counter() - started_at > ROUND_S_MAX:
                left = await self._connection.fetchval(self._statements.left)
                raise FailedError(f"{left} of {jobs} jobs not done after {ROUND_S_MAX:.0f} s: {worker.said}")
            await asyncio.sleep(POLL_S)
        return time.perf_counter() - started_at

    async def _message(
        self, worker: Worker, statement: asyncpg.prepared_stmt.PreparedStatement, number: int
    ) -> tuple[float, float]:
        transaction = self._connection.transaction()
        await transaction.start()
        await statement.fetchval(number)
        sent_at = time.monotonic_ns()
        await transaction.commit()
        committed_at = time.monotonic_ns()
        try:
            async with asyncio.timeout(MESSAGE_S_MAX):
                ran, at = await worker.ran.get()
        except TimeoutError:
            worker.check()
            raise FailedError(f"a message had not arrived after {MESSAGE_S_MAX:.0f} s: {worker.said}") from None
        if ran != number:
            raise FailedError(f"message {ran} arrived when {number} was expected")
        return (at - sent_at) / 1e6, (committed_at - sent_at) / 1e6


def check_calls(numbers: list[int], load: Load, jobs: int) -> None:
    """
    Look whether the handler was called for each job, and once.

    Args:
        numbers: What the jobs said that the handler was given: of a system that knows objects, the object.

    Raises:
        FailedError: It was not; where jobs coalesce: not for each object.
    """
    expected, different = load.objects(jobs), len(set(numbers))
    if different != expected or (len(numbers) != expected and not load.coalesces):
        raise FailedError(f"{expected:,} jobs: the handler was given {different:,}, in {len(numbers):,} calls")


async def open_bench(entry: Entry, server_dsn: str) -> Bench:
    """Make the entry's database, with the system's own schema in it."""
    admin = await asyncpg.connect(server_dsn)
    try:
        await admin.execute(f'CREATE DATABASE "{entry.key}"')
    finally:
        await admin.close()
    dsn = urlunsplit(urlsplit(server_dsn)._replace(path=f"/{entry.key}"))
    await set_up(entry, dsn)
    return Bench(entry, dsn, await asyncpg.connect(dsn, server_settings=POLL_SETTINGS))
