"""`outboxd demo`, as a process: what it shows, that its sum is right, and that nothing is left of it."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import re
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import termios
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests.eventually import PATIENCE_S, eventually
from tests.processes import ROOT, Outboxd, outboxd, run

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SUM_LINE = re.compile(
    r"^  ([ =+]) (rows found|rows written|backfilled|delivered|coalesced away|waiting) +([\d,]+)", re.MULTILINE
)
DIRECTORY = re.compile(r"/tmp/obx(?:new)?-[^/\s]+")
DAEMON = "outboxd.demo --config"


class Family:
    """The processes that a demo has started so far, and the directories they were started with."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._members: dict[int, str] = {}

    def look(self) -> dict[int, str]:
        """Find the living descendants; returns their command lines by process id."""
        command = ["ps", "-ww", "-eo", "pid=,ppid=,args="]
        listed = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        rows = [line.split(None, 2) for line in listed.splitlines()]
        living: dict[int, str] = {}
        parents = {self._pid}
        while parents:
            found = {int(row[0]): row[2] for row in rows if int(row[1]) in parents and int(row[0]) not in living}
            living |= found
            parents = set(found)
        self._members |= living
        return living

    def find(self, text: str) -> int:
        """Return the process id of the descendant with this in its command line; 0: there is none."""
        return next((pid for pid, arguments in self.look().items() if text in arguments), 0)

    def kill(self, text: str, number: signal.Signals) -> None:
        pid = self.find(text)
        assert pid > 0, f"no process has {text!r} in its command line"  # 0 would be our own group
        os.kill(pid, number)

    def processes_left(self) -> list[str]:
        return [arguments for pid, arguments in self._members.items() if is_alive(pid)]

    def directories_left(self) -> list[str]:
        named = {directory for arguments in self._members.values() for directory in DIRECTORY.findall(arguments)}
        assert named, f"no directory was seen in {self._members}"
        return [directory for directory in named if Path(directory).exists()]


def is_alive(pid: int) -> bool:
    listed = subprocess.run(["ps", "-o", "stat=", "-p", str(pid)], check=False, capture_output=True, text=True).stdout
    return bool(listed.strip()) and not listed.startswith("Z")


def check_sum(output: str) -> dict[str, int]:
    """Read the sum at the end and do it."""
    rows = SUM_LINE.findall(output)
    counts = {name: int(count.replace(",", "")) for _, name, count in rows}
    came = counts.get("rows found", 0) + counts["rows written"] + counts["backfilled"]
    assert came == counts["delivered"] + counts["coalesced away"] + counts["waiting"], output
    return counts


async def until_said(demo: Outboxd, text: str) -> None:
    await eventually(lambda: text in demo.stdout, what=f"{text!r} on stdout", error=demo.stderr)


async def test_it_counts_what_it_did_and_leaves_nothing() -> None:
    async with outboxd("demo", "--seconds", "3") as demo:
        family = Family(demo.pid)
        await until_said(demo, "1 s  written")
        family.look()
        assert await demo.wait() == 0
    counts = check_sum(demo.stdout)

    assert demo.stderr == ""
    assert counts["delivered"] > 0
    assert counts["coalesced away"] > 0
    assert counts["backfilled"] > 0
    assert re.search(
        r"^   2 s  written \d+, backfilled \d+ \(\d+ % of the members, walking\), delivered \d+, ",
        demo.stdout,
        re.MULTILINE,
    )
    assert "outboxd demo" in demo.stdout_lines[0]
    assert re.search(r"outboxd init .*\n.*OUTBOX_DSN.*\n.*outboxd migrate ", demo.stdout)
    assert family.processes_left() == []
    assert family.directories_left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_while_the_cluster_is_made_ends_it(number: signal.Signals) -> None:
    async with outboxd("demo") as demo:
        family = Family(demo.pid)
        await eventually(lambda: family.find("initdb"))
        demo.signal(number)
        assert await demo.wait() == 0

    assert "Stopped before the shop had opened." in demo.stdout
    assert demo.stderr == ""
    assert family.processes_left() == []
    assert family.directories_left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_while_the_daemon_starts_ends_it(number: signal.Signals) -> None:
    async with outboxd("demo") as demo:
        family = Family(demo.pid)
        await eventually(lambda: family.find(DAEMON))
        demo.signal(number)
        assert await demo.wait() == 0

    assert demo.stderr == ""
    assert family.processes_left() == []
    assert family.directories_left() == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
async def test_a_signal_in_the_middle_ends_it_with_the_sum(number: signal.Signals) -> None:
    async with outboxd("demo", "--seconds", "0") as demo:
        family = Family(demo.pid)
        await until_said(demo, "1 s  written")
        family.look()
        demo.signal(number)
        assert await demo.wait() == 0

    assert check_sum(demo.stdout)["rows written"] > 0
    assert demo.stderr == ""
    assert family.processes_left() == []
    assert family.directories_left() == []


async def test_a_daemon_that_dies_is_reported() -> None:
    async with outboxd("demo") as demo:
        family = Family(demo.pid)
        await until_said(demo, "1 s  written")
        family.kill(DAEMON, signal.SIGKILL)
        assert await demo.wait() == 1

    assert "error: the daemon has ended with code -9" in demo.stderr
    assert "Traceback" not in demo.stderr
    assert family.processes_left() == []
    assert family.directories_left() == []


async def test_a_database_that_dies_is_reported() -> None:
    async with outboxd("demo") as demo:
        family = Family(demo.pid)
        await until_said(demo, "1 s  written")
        family.kill("bin/postgres -D", signal.SIGQUIT)
        assert await demo.wait() == 69

    assert demo.stderr.startswith("error: ")
    assert "Traceback" not in demo.stderr
    assert family.processes_left() == []
    assert family.directories_left() == []


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a server that its parent has died")
async def test_no_process_outlives_a_demo_that_is_killed() -> None:
    async with outboxd("demo") as demo:
        family = Family(demo.pid)
        await until_said(demo, "1 s  written")
        family.look()
        await demo.kill()
        await eventually(lambda: not family.processes_left())
        for directory in family.directories_left():  # else the next start removes it
            shutil.rmtree(directory, ignore_errors=True)


async def test_a_reader_that_leaves_ends_it(tmp_path: Path) -> None:
    errors = tmp_path / "stderr"
    with errors.open("wb") as stderr:
        demo = await asyncio.create_subprocess_exec(
            *(sys.executable, "-m", "outboxd", "demo"), stdout=asyncio.subprocess.PIPE, stderr=stderr, cwd=ROOT
        )
        assert demo.stdout is not None
        await demo.stdout.readline()
        family = Family(demo.pid)
        await eventually(lambda: family.find("postgres"))
        demo._transport.get_pipe_transport(1).close()  # type: ignore[attr-defined]  # there is no public way
        assert await asyncio.wait_for(demo.wait(), PATIENCE_S) == 141

    assert errors.read_text() == ""
    assert family.processes_left() == []


async def test_a_kept_database_is_taken_up_again() -> None:
    # Not pytest's directory: where root runs the tests, the server's account could not enter it.
    place = Path(tempfile.mkdtemp(prefix="outboxd-demo-test-"))
    place.chmod(0o755)
    try:
        first = await run("demo", "--seconds", "1", "--data", str(place / "data"))
        second = await run("demo", "--seconds", "1", "--data", str(place / "data"))
        left, found = check_sum(first.stdout)["waiting"], check_sum(second.stdout).get("rows found", 0)
    finally:
        shutil.rmtree(place)

    assert (first.returncode, second.returncode) == (0, 0)
    assert found == left
    done = [
        int(count.replace(",", "")) for count in re.findall(r"([\d,]+) of 3,000 done", first.stdout + second.stdout)
    ]
    assert done[1] == done[0] + check_sum(second.stdout)["backfilled"]


async def test_missing_servers_are_named_with_what_to_install() -> None:
    demo = await run("demo", env={"OUTBOXD_PG_BIN": "/nonexistent"})

    assert demo.returncode == 1
    assert demo.stderr.startswith("error: no PostgreSQL binaries")
    assert "/nonexistent/postgres: No such file or directory" in demo.stderr
    assert "Traceback" not in demo.stderr
    assert "hint: Run `pip install 'outboxd[embedded]'`" in demo.stderr


@pytest.mark.parametrize("option", ["--dsn=postgresql://db/app", "--silo-mode=region", "--config=x.toml"])
async def test_it_never_runs_on_a_database_of_somebody_else(option: str) -> None:
    demo = await run(option, "demo")

    assert demo.returncode == 2
    assert "a database and a configuration of its own" in demo.stderr


class Terminal:
    """A demo in a pseudo-terminal of its own; `output` is everything it has sent there."""

    def __init__(self, process: asyncio.subprocess.Process, main: int) -> None:
        self.process = process
        self._main = main
        self._sent = b""
        asyncio.get_running_loop().add_reader(main, self._read)

    @property
    def output(self) -> str:
        return self._sent.decode(errors="replace").replace("\r\n", "\n")

    def _read(self) -> None:
        try:
            self._sent += os.read(self._main, 65_536)
        except OSError:  # EIO: nobody has the other side open any more
            asyncio.get_running_loop().remove_reader(self._main)

    def type(self, text: bytes) -> None:
        os.write(self._main, text)

    def close(self) -> None:
        if self._main >= 0:
            asyncio.get_running_loop().remove_reader(self._main)
            os.close(self._main)
            self._main = -1

    async def wait(self) -> int:
        return await asyncio.wait_for(self.process.wait(), PATIENCE_S)


@contextlib.asynccontextmanager
async def terminal(*arguments: str, columns: int = 100) -> AsyncIterator[Terminal]:
    main, side = os.openpty()
    fcntl.ioctl(side, termios.TIOCSWINSZ, struct.pack("HHHH", 30, columns, 0, 0))
    environment = {key: value for key, value in os.environ.items() if key not in ("COLUMNS", "LINES", "NO_COLOR")}
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "outboxd", "demo", *arguments),
        stdin=side,
        stdout=side,
        stderr=side,
        cwd=ROOT,
        env={**environment, "TERM": "xterm-256color"},
        start_new_session=True,
        preexec_fn=lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0),  # so that Ctrl-C and closing it are signals
    )
    os.close(side)
    shown = Terminal(process, main)
    try:
        yield shown
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        shown.close()


@pytest.mark.parametrize("columns", [40, 100])
async def test_a_terminal_gets_a_table_and_then_the_sum(columns: int) -> None:
    async with terminal("--seconds", "1", columns=columns) as shown:
        assert await shown.wait() == 0
        await eventually(lambda: "to read:" in shown.output)

    assert "Ctrl-C ends it" in shown.output
    for word in (
        "rows written",
        "+ backfilled",
        "= delivered",
        "+ coalesced away",
        "+ due",
        "+ in backoff",
        "rows/s",
        "lag",
        "  backfill ",
    ):
        assert word in shown.output
    assert "\x1b[?25h" in shown.output  # the cursor is back
    assert "Traceback" not in shown.output
    check_sum(shown.output.split("The sum:")[1])


async def test_ctrl_c_in_a_terminal_ends_it_with_the_sum() -> None:
    async with terminal("--seconds", "0") as shown:
        family = Family(shown.process.pid)
        await eventually(lambda: "rows written" in shown.output)
        family.look()
        shown.type(b"\x03")
        assert await shown.wait() == 0
        await eventually(lambda: "to read:" in shown.output)

    check_sum(shown.output.split("The sum:")[1])
    assert "Traceback" not in shown.output
    assert family.processes_left() == []
    assert family.directories_left() == []


async def test_closing_the_terminal_ends_it() -> None:
    async with terminal("--seconds", "0") as shown:
        family = Family(shown.process.pid)
        await eventually(lambda: "rows written" in shown.output)
        family.look()
        shown.close()
        assert await shown.wait() == 0

    assert family.processes_left() == []
    assert family.directories_left() == []
