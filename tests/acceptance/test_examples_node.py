"""The example in Node: started by the command of its README, it is told of its orders, those of a customer in order."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import sys
from pathlib import Path

import pytest

from tests.eventually import PATIENCE_S

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "examples" / "node"


@pytest.mark.skipif(shutil.which("node") is None or shutil.which("npm") is None, reason="there is no node")
async def test_the_command_of_the_readme() -> None:
    readme = (EXAMPLE / "README.md").read_text("utf-8")
    command = re.search(r"^python (.*)$", readme, re.MULTILINE)
    assert command is not None
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, *command[1].split()),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    async with asyncio.timeout(2 * PATIENCE_S):
        output, error = await process.communicate()
    if not (EXAMPLE / "node_modules" / "pg").exists():
        pytest.skip("npm could not install pg")

    assert process.returncode == 0, error.decode()
    told = [line for line in output.decode().splitlines() if line.startswith("told of")]
    shown = readme.rsplit("```\n", 2)[1].splitlines()
    assert [line for line in told if "customer 2" not in line] == shown
    assert "told of order 2 of customer 2: 20" in told
