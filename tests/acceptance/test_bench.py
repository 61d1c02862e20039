"""The benchmarks run, and say what they have measured."""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path

import pytest

from bench.figures import HEAD, Series, Table

ROOT = Path(__file__).parents[2]


async def bench(*arguments: str) -> tuple[int | None, str, str]:
    process = await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    stdout, stderr = await process.communicate()
    return process.returncode, stdout.decode(), stderr.decode()


@pytest.mark.timeout(120)
async def test_figures_are_shown_and_kept(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    code, stdout, stderr = await bench("finding", "--quick", "--rounds", "1", "--to", str(path))

    assert code == 0, stderr
    [table] = json.loads(path.read_text())["tables"]
    assert table["name"] == "W4"
    assert all(len(series["values"]) == 1 for series in table["series"])
    assert "**W4.**" in stdout
    assert "**W4.**" in path.with_suffix(".md").read_text()
    assert "W4 round 1" in stderr


async def test_a_name_that_is_none() -> None:
    code, _, stderr = await bench("nothing")
    assert code == 2
    assert "there is no nothing; there are drain, finding" in stderr


def test_a_goal_is_met_or_missed_by_the_median() -> None:
    table = Table("W", "about", [Series("ratio", 2, at_least=0.8), Series("lag", at_most=5), Series("rows/s")])
    for values in ((0.7, 4, 1), (0.9, 6, 2), (0.8, 7, 3)):
        table.add(*values)

    assert [series.cells()[HEAD.index("goal") :] for series in table.series] == [
        (">= 0.8", "met"),
        ("<= 5", "missed"),
        ("", ""),
    ]
    assert "| ratio  | 0.80   | 0.70 | 0.90 | >= 0.8 | met    |" in table.markdown()
