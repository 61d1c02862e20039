"""The benchmarks run, and say what they have measured."""

from __future__ import annotations

import asyncio
import json
import signal
import sys
from pathlib import Path

import pytest

from bench.command_line import result_file
from bench.figures import HEAD, Series, Table

ROOT = Path(__file__).parents[2]


async def start(*arguments: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench",
        *arguments,
        cwd=ROOT,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )


async def bench(*arguments: str) -> tuple[int | None, str, str]:
    process = await start(*arguments)
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
    assert "A quick run" in stdout
    assert "W4 round 1" in stderr


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nothing"], "there is no nothing; there are drain, finding"),
        (["drain", "--rounds", "0"], "0 rounds measure nothing"),
        (["drain", "--rounds", "few"], "few is not a number of rounds"),
        (["drain", "--to", "figures.md"], "figures.md does not end in .json"),
        (["drain", "--to", "README.md/figures.json"], "there is no directory README.md"),
    ],
)
async def test_what_cannot_be_measured_or_kept_is_refused_at_once(arguments: list[str], said: str) -> None:
    code, _, stderr = await bench(*arguments)
    assert code == 2
    assert said in stderr


def test_a_result_file_gets_its_directory(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    assert result_file(str(path)) == path
    assert path.parent.is_dir()


@pytest.mark.parametrize(("by", "expected"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
async def test_it_is_ended_by_hand_without_a_traceback(by: signal.Signals, expected: int, tmp_path: Path) -> None:
    process = await start("drain", "--quick", "--to", str(tmp_path / "figures.json"))
    assert process.stderr is not None
    first = await process.stderr.readline()
    process.send_signal(by)
    _, stderr = await process.communicate()
    assert process.returncode == expected
    assert (first[:2], stderr.decode().splitlines()[-1]) == (b"W0", "interrupted")
    assert b"Traceback" not in stderr


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
