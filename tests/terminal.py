"""The real `outboxd` on a terminal, as a person sees it."""

from __future__ import annotations

import asyncio
import os
import pty
import sys
from typing import TYPE_CHECKING

from tests.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path


async def run(file: Path, *arguments: str, answer: str = "", columns: int = 140) -> str:
    """Run it with a configuration, on a terminal of so many columns, and return what is there at the end."""
    leader, follower = pty.openpty()
    command = [sys.executable, "-m", "outboxd", "--config", str(file), *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": str(columns), "LINES": "40"}
    process = await asyncio.create_subprocess_exec(
        *command, stdin=follower, stdout=follower, stderr=follower, env=environment, start_new_session=True
    )
    os.close(follower)
    if answer:
        os.write(leader, f"{answer}\n".encode())
    shown = await asyncio.to_thread(_read_all, leader)
    await process.wait()
    os.close(leader)
    assert "Traceback" not in shown
    return shown


def _read_all(leader: int) -> str:
    found = b""
    while True:
        try:
            read = os.read(leader, 65_536)
        except OSError:  # Linux says so when the last one has closed its end
            break
        if not read:
            break
        found += read
    return found.decode(errors="replace")
