"""The example on asyncpg: started by the command of its README, it prints what stands there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
README = (ROOT / "examples" / "asyncpg_app" / "README.md").read_text("utf-8")


async def test_the_command_of_the_readme() -> None:
    command = re.search(r"^python (.*)$", README, re.MULTILINE)
    assert command is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command[1].split()),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(40):
        output, error = await process.communicate()

    assert process.returncode == 0, error.decode()
    assert "Traceback" not in error.decode()
    printed = output.decode()
    shown = README.split("and ends:\n\n```\n")[1].split("```")[0]
    assert printed.endswith(shown), printed
    assert "the application delivers PLAN_UPDATE of account 1: {'plan': 'pro'}" in error.decode()
    assert error.decode().count("the daemon delivers INVOICE of account 1") == 2
