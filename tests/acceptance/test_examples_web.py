"""The web applications among the examples: started by the command of its README, each prints what stands there."""

from __future__ import annotations

import asyncio
import os
import re
import sys
from pathlib import Path

import pytest

from tests.eventually import PATIENCE_S

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("example", ["asyncpg_app", "django_app", "fastapi_app"])
async def test_the_command_of_the_readme(example: str) -> None:
    readme = (ROOT / "examples" / example / "README.md").read_text("utf-8")
    command = re.search(r"^python (.*)$", readme, re.MULTILINE)
    assert command is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command[1].split()),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(PATIENCE_S):
        output, error = await process.communicate()

    assert process.returncode == 0, error.decode()
    assert "Traceback" not in error.decode()
    printed = output.decode()
    shown = readme.split("and ends:\n\n```\n")[1].split("```")[0]
    assert printed.endswith(shown), printed
    # The daemon hears of the commit when the flush does: now and then it is first, and the flush waits for it.
    plans = re.findall(r"the (?:application|daemon) delivers PLAN_UPDATE of account 1: {'plan': 'pro'}", error.decode())
    assert len(plans) == 1, error.decode()
    assert error.decode().count("the daemon delivers INVOICE of account 1") == 2
