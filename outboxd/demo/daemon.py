"""The daemon's process, seen from outside: started as a user would, stopped with SIGTERM, read by its log."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import deque
from typing import TYPE_CHECKING, Any

import anyio

from outboxd import errors

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

READY_TIMEOUT_S = 30.0
STOP_TIMEOUT_S = 10.0
WORDS_MAX = 10
LINE_BYTES_MAX = 1024 * 1024


class Daemon:
    """
    What the running daemon has logged about itself.

    Attributes:
        delivered: Receiver calls that succeeded.
        retired: Rows that left the outbox with them.
        failures: Deliveries that failed.
        buried: Messages given up; none, as the demo is configured.
        backfill: What its backfill does, in its own word.
        stopped: Whether these are the final numbers, of the daemon's last line.
        ended: Set when the process has ended.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self._process = process
        self._ready = asyncio.Event()
        self._words: deque[str] = deque(maxlen=WORDS_MAX)
        self.ended = asyncio.Event()
        self.delivered = self.retired = self.failures = self.buried = 0
        self.backfill = "waiting"
        self.stopped = False

    async def ready(self) -> None:
        """
        Wait until it drains.

        Raises:
            OutboxdError: It has ended instead, or something keeps it from draining.
        """
        with anyio.move_on_after(READY_TIMEOUT_S):
            await self._ready.wait()
        if self.ended.is_set() or not self._ready.is_set():
            raise self.failure()

    async def stop(self) -> None:
        """Stop it softly, as systemd would; its last line bears the totals."""
        self._signal(signal.SIGTERM)
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(self.ended.wait(), STOP_TIMEOUT_S)

    def failure(self) -> errors.OutboxdError:
        """Build the error for a daemon that ended unasked or does not do its work, with its last words."""
        code = self._process.returncode
        state = "does not get ready or does not stop" if code is None else f"has ended with code {code}"
        return errors.OutboxdError("\n".join([f"the daemon {state}:", *self._words]))

    async def follow(self) -> None:
        """Read its log to the end."""
        assert self._process.stderr is not None
        async for line in self._process.stderr:
            self._take(line.decode(errors="replace").rstrip())
        await self._process.wait()
        self.ended.set()
        self._ready.set()

    def _take(self, line: str) -> None:
        self._words.append(line)
        try:
            event: dict[str, Any] = json.loads(line)
        except ValueError:
            return  # a traceback, or the words of `commands.report`
        if event.get("event") == "daemon.ready":
            self._ready.set()
        elif event.get("event") == "drain.summary":
            self._count(event, self.delivered, self.retired, self.failures, self.buried)
        elif event.get("event") == "backfill.changed":
            self.backfill = event["condition"]
        elif event.get("event") == "backfill.broken":
            self.backfill = "broken"
        elif event.get("event") == "daemon.stopped":
            self._count(event, 0, 0, 0, 0)
            self.stopped = True

    def _count(self, event: dict[str, Any], delivered: int, retired: int, failures: int, buried: int) -> None:
        self.delivered = delivered + event["delivered"]
        self.retired = retired + event["retired"]
        self.failures = failures + event["failures"]
        self.buried = buried + event["buried"]

    def _signal(self, number: signal.Signals) -> None:
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(number)

    def kill(self) -> None:
        """End it at once."""
        self._signal(signal.SIGKILL)


@contextlib.asynccontextmanager
async def running(config: Path, dsn: str) -> AsyncIterator[Daemon]:
    """Run `outboxd --config CONFIG` as a process that ends with the block, or with us, if we are killed."""
    with anyio.CancelScope(shield=True):  # a process whose start was cancelled half way would be nobody's
        process = await asyncio.create_subprocess_exec(
            *(sys.executable, "-P", "-m", "outboxd.demo", "--config", str(config)),
            stdin=asyncio.subprocess.PIPE,  # its end is the news of our death
            stdout=asyncio.subprocess.DEVNULL,
            stderr=asyncio.subprocess.PIPE,
            env=_environment(dsn),
            start_new_session=True,  # Ctrl-C must reach the demo only, which then closes the shop first
            limit=LINE_BYTES_MAX,
        )
    daemon = Daemon(process)
    follower = asyncio.create_task(daemon.follow())
    try:
        yield daemon
    finally:
        daemon.kill()
        with anyio.CancelScope(shield=True):
            await follower


def _environment(dsn: str) -> dict[str, str]:
    """Hand on the caller's environment, but nothing of it that would configure the daemon otherwise."""
    foreign = ("OUTBOX_", "PG", "NOTIFY_", "WATCHDOG_")
    kept = {key: value for key, value in os.environ.items() if not key.startswith(foreign)}
    return {**kept, "OUTBOX_DSN": dsn, "OUTBOX_LOG_FORMAT": "json", "PGPASSFILE": os.devnull}
