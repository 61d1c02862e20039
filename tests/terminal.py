"""The real `outboxd` on a terminal, as a person sees it."""

from __future__ import annotations

import asyncio
import contextlib
import os
import pty
import re
import select
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from tests.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import Mapping

TIMEOUT_S = 30.0
AGAIN_S = 3.0
QUESTION = b"[y/N]: "
CTRL_C = "\x03"
"""Not typed, but sent as the signal that it becomes."""
STYLE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")
"""Colours, and what moves the cursor."""


async def run(file: Path, *arguments: str, answer: str = "", columns: int = 140) -> str:
    """Run it with a configuration, on a terminal of so many columns, and return what is there at the end."""
    _, shown = await ended(file, *arguments, answer=answer, columns=columns)
    return shown


async def ended(file: Path, *arguments: str, answer: str = "", columns: int = 140) -> tuple[int, str]:
    """Do as `run`, and return the exit code, too."""
    command = [sys.executable, "-m", "outboxd", "--config", str(file), *arguments]
    return await on_terminal(command, env={"PYTHONPATH": str(ROOT)}, answer=answer, columns=columns)


async def on_terminal(
    command: list[str], *, env: Mapping[str, str], cwd: Path | None = None, answer: str = "", columns: int = 140
) -> tuple[int, str]:
    """
    Run any program on a terminal.

    Args:
        command: The program and its arguments.
        env: On top of the tests' environment.
        cwd: Where it runs; None: here.
        answer: Typed when it asks; without one nobody answers.
        columns: Of the terminal.

    Returns:
        The exit code, and what is on the terminal at the end, with its colours.
    """
    leader, follower = pty.openpty()
    environment = {**os.environ, "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40", **env}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=follower, stdout=follower, stderr=follower, env=environment, cwd=cwd, start_new_session=True
    )
    os.close(follower)
    # Without the answer it waits for, nothing would ever end it.
    end = asyncio.get_running_loop().call_later(TIMEOUT_S, os.killpg, process.pid, signal.SIGKILL)
    shown = await asyncio.to_thread(_read_all, leader, answer, process.pid)
    code = await process.wait()
    end.cancel()
    os.close(leader)
    assert "Traceback" not in shown, shown
    return code, shown


def _read_all(leader: int, answer: str, pid: int) -> str:
    found, interrupted = b"", False
    while True:
        if interrupted and not select.select([leader], [], [], AGAIN_S)[0]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGINT)  # the first one came just before the read, and was lost
            continue
        try:
            read = os.read(leader, 65_536)
        except OSError:  # Linux says so when the last one has closed its end
            break
        if not read:
            break
        found += read
        if answer and found.endswith(QUESTION):
            if answer == CTRL_C:
                os.kill(pid, signal.SIGINT)
                interrupted = True
            else:
                os.write(leader, f"{answer}\n".encode())
            answer = ""
    return found.decode(errors="replace")
