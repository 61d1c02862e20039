"""The real `outboxd`, as a process of its own."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.eventually import PATIENCE_S, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Mapping, Sequence

ROOT = Path(__file__).parent.parent
DEFAULTS = {"OUTBOX_LOG_FORMAT": "json", "OUTBOX_HTTP_LISTEN": "127.0.0.1:0"}
"""JSON logs, and any port that is free: daemons of many tests run at the same time."""


class Outboxd:
    """
    A running `outboxd`.

    `stderr_lines` and `stdout_lines` grow while it runs; they are complete once `wait` has returned.
    """

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        assert process.stderr is not None
        self._process = process
        self.stdout_lines: list[str] = []
        self.stderr_lines: list[str] = []
        self._readers = [
            asyncio.create_task(_collect(process.stdout, self.stdout_lines)),
            asyncio.create_task(_collect(process.stderr, self.stderr_lines)),
        ]

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.returncode

    @property
    def stdout(self) -> str:
        return "".join(f"{line}\n" for line in self.stdout_lines)

    @property
    def stderr(self) -> str:
        return "".join(f"{line}\n" for line in self.stderr_lines)

    def signal(self, number: signal.Signals) -> None:
        self._process.send_signal(number)

    async def wait(self, timeout_s: float = PATIENCE_S) -> int:
        """Wait for its end and return the exit code; fails the test after `timeout_s` seconds."""
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*self._readers)
                return await self._process.wait()
        except TimeoutError:
            raise AssertionError(f"outboxd still runs after {timeout_s:g} s:\n{self.stderr}") from None

    def events(self, name: str) -> list[dict[str, Any]]:
        """Return the log lines (JSON) whose `event` is `name`, in order."""
        return [event for event in map(_parse, self.stderr_lines) if event.get("event") == name]

    async def wait_for_event(self, name: str, *, count: int = 1, timeout_s: float = PATIENCE_S) -> dict[str, Any]:
        """Return the `count`th log line of this event, waiting for it; fails when outboxd has ended."""

        def logged_or_ended() -> bool:
            return len(self.events(name)) >= count or all(reader.done() for reader in self._readers)

        with contextlib.suppress(AssertionError):
            await eventually(logged_or_ended, timeout_s)
        found = self.events(name)
        end = "" if self.returncode is None else f"; it ended with {self.returncode}"
        assert len(found) >= count, f"event {name} was logged {len(found)} times{end}:\n{self.stderr}"
        return found[count - 1]

    async def kill(self) -> None:
        """End it at once, also when it is stopped (SIGSTOP)."""
        if self._process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self._process.send_signal(signal.SIGKILL)
        await self._process.wait()
        for reader in self._readers:  # a grandchild may hold the pipe open
            reader.cancel()
        await asyncio.gather(*self._readers, return_exceptions=True)


@contextlib.asynccontextmanager
async def outboxd(
    *arguments: str,
    config: Path | str | None = None,
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    module_path: Path | None = None,
    through: Sequence[str] = (),
    program: Sequence[str] = ("outboxd",),
) -> AsyncIterator[Outboxd]:
    """
    Start `python -m outboxd` and kill it at the end, if it still runs.

    Args:
        arguments: As on the command line, after `--config`.
        config: The configuration file.
        env: On top of the tests' environment, from which PG* and OUTBOX_* are gone, and of `DEFAULTS`.
        cwd: Where it runs; None: the repository, which has no outboxd.toml.
        module_path: A further directory for its imports, e.g. of receivers.
        through: A program that becomes ours, e.g. `sh -c 'exec "$@"' sh`.
        program: The module that is run, and what stands before the arguments.
    """
    paths = [str(ROOT), *([str(module_path)] if module_path else [])]
    process = await asyncio.create_subprocess_exec(
        *(*through, sys.executable, "-m", *program, *(["--config", str(config)] if config else []), *arguments),
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        cwd=cwd or ROOT,
        env={**os.environ, **DEFAULTS, "PYTHONPATH": os.pathsep.join(paths), **(env or {})},
        limit=16 * 1024 * 1024,  # bytes of one line: --json prints a whole document on one
    )
    running = Outboxd(process)
    try:
        yield running
    finally:
        await running.kill()


async def run(*arguments: str, timeout_s: float = PATIENCE_S, **options: Any) -> Outboxd:
    """Run `outboxd` to its end; the options are those of `outboxd`."""
    async with outboxd(*arguments, **options) as process:
        await process.wait(timeout_s)
        return process


async def _collect(stream: asyncio.StreamReader, lines: list[str]) -> None:
    async for line in stream:
        lines.append(line.decode(errors="replace").rstrip("\n"))


def _parse(line: str) -> dict[str, Any]:
    with contextlib.suppress(ValueError):
        parsed = json.loads(line)
        if isinstance(parsed, dict):
            return parsed
    return {}
