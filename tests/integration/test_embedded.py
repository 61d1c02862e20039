"""The embedded servers: they start anywhere, and nothing of them is left."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import socket
import sys
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import asyncpg
import pytest
import redis.asyncio as redis

from outboxd.embedded import EmbeddedError, embedded_postgres, embedded_valkey
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent

PARENT = """
import asyncio, sys
from outboxd.embedded import embedded_postgres, embedded_valkey

async def main():
    async with embedded_postgres(durable=False) as dsn, embedded_valkey() as url:
        print(dsn, url, flush=True)
        await asyncio.Event().wait()

asyncio.run(main())
"""


def place_of(dsn: str) -> Path:
    url = urlsplit(dsn)
    return Path(url.path).parent if url.scheme == "unix" else Path(parse_qs(url.query)["host"][0])


def processes_in(place: Path) -> list[str]:
    """The command lines of those whose working directory is the place, or below it: all of ours."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            if str((entry / "cwd").readlink()).startswith(str(place)):
                found.append((entry / "cmdline").read_text().replace("\0", " ").strip() or entry.name)
    return found


async def query(dsn: str, statement: str) -> object:
    connection = await asyncpg.connect(dsn)
    try:
        return await connection.fetchval(statement)
    finally:
        await connection.close()


@pytest.fixture
def data() -> Iterator[Path]:
    """A place for data that the server's account can reach when the tests run as root; tmp_path is not."""
    with tempfile.TemporaryDirectory(prefix="outboxd-test-", dir="/tmp") as directory:
        Path(directory).chmod(0o711)
        yield Path(directory) / "pg"


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
        return port


async def test_nothing_is_left_after_the_block() -> None:
    async with embedded_postgres(durable=False) as dsn, embedded_valkey() as url:
        places = [place_of(dsn), place_of(url)]
        assert await query(dsn, "SELECT 1") == 1
        async with redis.Redis.from_url(url) as client:
            assert await client.ping()
        assert all(processes_in(place) for place in places)
    assert not any(place.exists() for place in places)
    assert [processes_in(place) for place in places] == [[], []]


async def test_database_speaks_utf8_and_sorts_by_code_point() -> None:
    async with embedded_postgres(durable=False) as dsn:
        assert await query(dsn, "SHOW server_encoding") == "UTF8"
        assert await query(dsn, "SELECT 'Z' < 'a' AND length('ä€') = 2")
        assert await query(dsn, "SELECT current_user") == "outbox"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root")
async def test_root_is_given_up() -> None:
    async with embedded_postgres(durable=False) as dsn:
        assert (place_of(dsn) / "data").stat().st_uid != 0
        assert await query(dsn, "SHOW data_directory") == str(place_of(dsn) / "data")


async def test_only_the_account_may_enter_the_directory() -> None:
    async with embedded_postgres(durable=False) as dsn, embedded_valkey() as url:
        assert [place_of(text).stat().st_mode & 0o777 for text in (dsn, url)] == [0o700, 0o700]


async def test_environment_of_the_caller_has_no_say(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    bogus = {
        **dict.fromkeys(("LANG", "LC_ALL"), "xx_YY.UTF-9"),
        "TZ": "Nowhere/Else",
        "PGHOST": "nowhere.invalid",
        "PGPORT": "1",
        "PGUSER": "nobody-at-all",
        "PGDATABASE": "none",
        "PGDATA": "/nonexistent",
        "PGSSLMODE": "verify-full",
        "PGOPTIONS": "--bogus",
        "TMPDIR": str(tmp_path / ("long" * 30)),
    }
    for name, value in bogus.items():
        monkeypatch.setenv(name, value)
    async with embedded_postgres(durable=False) as dsn, embedded_valkey():
        assert await query(dsn, "SHOW timezone") in {"UTC", "Etc/UTC"}


async def test_cancelled_while_running_leaves_nothing() -> None:
    places: list[Path] = []

    async def hold() -> None:
        async with embedded_postgres(durable=False) as dsn, embedded_valkey() as url:
            places.extend([place_of(dsn), place_of(url)])
            await asyncio.Event().wait()

    holding = asyncio.create_task(hold())
    await eventually(lambda: places)
    holding.cancel()
    with pytest.raises(asyncio.CancelledError):
        await holding
    assert not any(place.exists() or processes_in(place) for place in places)


def descendants() -> dict[int, str]:
    """The command lines of this process's children and theirs: other tests may run servers at the same time."""
    parents, lines = {}, {}
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            lines[int(entry.name)] = (entry / "cmdline").read_text().replace("\0", " ").strip() or entry.name
    found: set[int] = {os.getpid()}
    while grown := {pid for pid, parent in parents.items() if parent in found} - found:
        found |= grown
    return {pid: lines[pid] for pid in found - {os.getpid()} if pid in lines}


@pytest.mark.parametrize("argument", ["--version", "initdb", "--boot", "unix_socket_directories"])
async def test_cancelled_while_starting_leaves_nothing(data: Path, argument: str) -> None:
    async def hold() -> None:
        async with embedded_postgres(data, durable=False):
            pass

    def ours() -> list[str]:
        return [line for pid, line in descendants().items() if pid not in before]

    async def caught() -> asyncio.Task[None]:
        """Start until the process was seen: some live for milliseconds, in which a busy machine does not look."""
        for _ in range(20):
            starting = asyncio.create_task(hold())
            while not starting.done():
                if any(argument in line for line in ours()):
                    return starting
                await asyncio.sleep(0)
            starting.result()
            shutil.rmtree(data)
        raise AssertionError(f"no process with {argument} was ever seen")

    before = descendants()
    starting = await caught()
    # Twice: whoever waits impatiently must not get a half-stopped server.
    starting.cancel()
    await asyncio.sleep(0)
    starting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await starting
    await eventually(lambda: not ours())
    assert not data.with_name("pg.initdb").exists()


async def test_killed_parent_leaves_no_process_and_the_next_start_sweeps() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, cwd=ROOT, stdout=asyncio.subprocess.PIPE
    )
    try:
        assert parent.stdout is not None
        places = [place_of(text) for text in (await parent.stdout.readline()).decode().split()]
        assert all(processes_in(place) for place in places)
    finally:
        parent.kill()
        await parent.wait()
    assert all(place.exists() for place in places)
    if sys.platform == "linux":
        await eventually(lambda: not any(processes_in(place) for place in places))
    async with embedded_postgres(durable=False), embedded_valkey():
        assert not any(place.exists() for place in places)


async def test_data_is_kept_and_has_one_user_at_a_time(data: Path) -> None:
    async with embedded_postgres(data, durable=False) as dsn:
        await query(dsn, "CREATE TABLE kept AS SELECT 42 AS answer")
        with pytest.raises(EmbeddedError, match=r"pg is in use by another process"):
            async with embedded_postgres(data):
                pass
        assert await query(dsn, "SELECT answer FROM kept") == 42
    async with embedded_postgres(data, settings={"max_connections": 7}) as dsn:
        assert await query(dsn, "SELECT answer FROM kept") == 42
        assert await query(dsn, "SHOW max_connections") == "7"
        assert await query(dsn, "SHOW fsync") == "on"


async def test_pid_file_of_a_crash_is_no_obstacle(data: Path) -> None:
    async with embedded_postgres(data, durable=False):
        pass
    # What a crash of the machine leaves: a pid file of a process that is no more.
    stale = data / "postmaster.pid"
    stale.write_text(f"4194304\n{data}\n1700000000\n5432\n/tmp\n\n  1 1\nready\n")
    async with embedded_postgres(data, durable=False) as dsn:
        assert await query(dsn, "SELECT 1") == 1


async def test_directory_of_somebody_else_is_not_touched(data: Path) -> None:
    data.mkdir()
    (data / "thesis.txt").write_text("the only copy")
    with pytest.raises(EmbeddedError, match="neither empty nor a PostgreSQL cluster"):
        async with embedded_postgres(data):
            pass
    assert (data / "thesis.txt").read_text() == "the only copy"


async def test_refused_setting_is_shown_in_the_server_s_words() -> None:
    with pytest.raises(EmbeddedError, match=r'(?s)postgres did not start:.*"no_such_setting"'):
        async with embedded_postgres(durable=False, settings={"no_such_setting": 1}):
            pass
    with pytest.raises(EmbeddedError, match=r"(?s)valkey did not start:.*no-such-setting"):
        async with embedded_valkey(settings={"no-such-setting": 1}):
            pass


async def test_missing_binaries_say_what_to_install(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("OUTBOXD_PG_BIN", str(tmp_path))
    monkeypatch.setenv("OUTBOXD_REDIS_BIN", str(tmp_path / "valkey-server"))
    with pytest.raises(EmbeddedError, match="no PostgreSQL binaries") as postgres_error:
        async with embedded_postgres():
            pass
    with pytest.raises(EmbeddedError, match="no Valkey or Redis binary") as valkey_error:
        async with embedded_valkey():
            pass
    for error, variable in ((postgres_error, "OUTBOXD_PG_BIN"), (valkey_error, "OUTBOXD_REDIS_BIN")):
        assert error.value.exit_code == 1
        assert "pip install 'outboxd[embedded]'" in error.value.hint
        assert variable in error.value.hint


@pytest.mark.parametrize("programs", sorted(Path("/usr/lib/postgresql").glob("*/bin")), ids=str)
async def test_postgresql_of_the_system_will_do(monkeypatch: pytest.MonkeyPatch, programs: Path) -> None:
    monkeypatch.setenv("OUTBOXD_PG_BIN", str(programs))
    async with embedded_postgres(durable=False) as dsn:
        assert str(await query(dsn, "SHOW server_version")).startswith(programs.parent.name)
        assert await query(dsn, "SHOW server_encoding") == "UTF8"


async def test_tcp_needs_a_password() -> None:
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": port}
    async with embedded_postgres(durable=False, settings=settings) as dsn:
        with pytest.raises(asyncpg.InvalidPasswordError):
            await asyncpg.connect(host="127.0.0.1", port=port, user="outbox", password="guess")
        assert await query(dsn, "SELECT 1") == 1
