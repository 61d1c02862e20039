"""A system's worker, as a process of its own."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import json
import os
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

from bench import child
from bench.about import ROOT
from bench.errors import FailedError

if TYPE_CHECKING:
    from bench.peers.system import Entry

READY_S_MAX = 30.0
STOP_S_MAX = 10.0
LAST_WORDS_S_MAX = 1.0
LINES_KEPT = 3
SAID_MAX = 300
LINE_BYTES_MAX = 1024 * 1024


class Worker:
    """A worker that runs: what it said last, and when its handler ran."""

    def __init__(self, process: asyncio.subprocess.Process, mark: str) -> None:
        self.ran: asyncio.Queue[tuple[int, int]] = asyncio.Queue()
        """A job's number, and the monotonic clock in nanoseconds."""
        self.event_loop = ""
        """What it runs on, where it has said so."""
        self._process = process
        self._mark = mark
        self._ready = asyncio.Event()
        self._lines: collections.deque[str] = collections.deque(maxlen=LINES_KEPT)
        self._reader = asyncio.create_task(self._read())

    async def ready(self) -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(READY_S_MAX):
                await self._ready.wait()
        self.check()
        if not self._ready.is_set():
            raise FailedError(f"not ready after {READY_S_MAX:.0f} s: {self.said}")

    def check(self) -> None:
        if self._process.returncode is not None:
            raise FailedError(f"its process ended with {self._process.returncode}: {self.said}")

    @property
    def said(self) -> str:
        return " | ".join(self._lines)[-SAID_MAX:] or "it said nothing"

    async def stop(self) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.terminate()
            try:
                async with asyncio.timeout(STOP_S_MAX):
                    await self._process.wait()
            except TimeoutError:
                self._process.kill()
                await self._process.wait()
        await asyncio.wait([self._reader], timeout=LAST_WORDS_S_MAX)  # a child of its own may keep the pipe open
        self._reader.cancel()
        await asyncio.gather(self._reader, return_exceptions=True)

    async def _read(self) -> None:
        assert self._process.stdout is not None
        async for line in self._process.stdout:
            text = line.decode(errors="replace").rstrip()
            words = text.split()
            if len(words) == 3 and words[0] == "ran":
                self.ran.put_nowait((int(words[1]), int(words[2])))
                continue
            if len(words) == 2 and words[0] == "loop":
                self.event_loop = words[1]
                continue
            if self._mark in text:
                self._ready.set()
            self._lines.append(text)
        await self._process.wait()
        self._ready.set()  # nobody waits for one that has ended


@contextlib.asynccontextmanager
async def running(entry: Entry, dsn: str, *, timed: bool = False) -> AsyncIterator[Worker]:
    """Run the entry's worker, ready for jobs; with `timed` its handler says when it ran."""
    environment = _environment(dsn) | ({"BENCH_TIMED": "1"} if timed else {})
    worker = Worker(await _start(entry, "work", environment), entry.system.ready)
    try:
        await worker.ready()
        yield worker
    finally:
        await worker.stop()


async def set_up(entry: Entry, dsn: str) -> None:
    process = await _start(entry, "setup", _environment(dsn))
    output, _ = await process.communicate()
    if process.returncode:
        said = " | ".join(output.decode(errors="replace").split("\n"))[-SAID_MAX:]
        raise FailedError(f"its set-up ended with {process.returncode}: {said}")


async def _start(entry: Entry, verb: str, environment: Mapping[str, str]) -> asyncio.subprocess.Process:
    command = entry.system.environment.command(entry.system.program)
    return await asyncio.create_subprocess_exec(
        *child.command(*command, verb, json.dumps(dict(entry.settings.values))),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
        cwd=ROOT,
        env=dict(environment),
        limit=LINE_BYTES_MAX,
    )


def _environment(dsn: str) -> dict[str, str]:
    """The caller's, without what it may hold for PostgreSQL and for the systems, and with where the database is."""
    strange = ("PG", "OUTBOX", "OBAN", "PGQUEUER", "PROCRASTINATE", "GRAPHILE", "PYTHON")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(strange)}
    parts = urlsplit(dsn)
    query = parse_qs(parts.query)
    return kept | {
        "PGHOST": query["host"][0],
        "PGPORT": query["port"][0],
        "PGUSER": parts.username or "",
        "PGDATABASE": parts.path[1:],
        "PGSSLMODE": "disable",
        "OUTBOX_LOG_FORMAT": "json",
    }
