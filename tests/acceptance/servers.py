"""Servers beside the run's own: one that asks for passwords, one that comes and goes, a pooler."""

from __future__ import annotations

import asyncio
import contextlib
import os
import shutil
import signal
import socket
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import asyncpg

from outboxd.embedded import embedded_postgres
from outboxd.server_process import unprivileged_account
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

PGBOUNCER = shutil.which("pgbouncer") or shutil.which("pgbouncer", path="/usr/sbin:/usr/local/sbin")


def free_port() -> int:
    """A TCP port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        number: int = probe.getsockname()[1]
    return number


def reachable_folder() -> Iterator[Path]:
    """Make a folder that every account may enter (pytest's own is closed) with a short path; remove it at the end."""
    folder = Path(tempfile.mkdtemp(prefix="obxtest-", dir="/tmp"))
    folder.chmod(0o777)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@dataclass(frozen=True)
class ScramServer:
    """`dsn` leads to it as superuser; `dsn_of` over TCP, where a password is asked for."""

    dsn: str
    port: int

    def dsn_of(self, user: str, password: str, database: str = "postgres") -> str:
        return f"postgresql://{user}:{password}@127.0.0.1:{self.port}/{database}"

    @contextlib.asynccontextmanager
    async def connection(self) -> AsyncIterator[asyncpg.Connection]:
        connection = await asyncpg.connect(self.dsn)
        try:
            yield connection
        finally:
            await connection.close()


class ComingAndGoing:
    """A server over TCP that can be stopped and started again on the same data and port."""

    PASSWORD = "coming-and-going"

    def __init__(self, folder: Path) -> None:
        self.data = folder / "data"
        self.port = free_port()
        self.dsn = f"postgresql://outbox:{self.PASSWORD}@127.0.0.1:{self.port}/postgres"

    @contextlib.asynccontextmanager
    async def started(self) -> AsyncIterator[asyncpg.Connection]:
        """Run it inside the block; yields a connection as superuser."""
        if not self.data.exists():
            # Before it listens: who waits for it must never meet a server that does not know the password yet.
            async with self._running({}) as connection:
                await connection.execute(f"ALTER ROLE outbox PASSWORD '{self.PASSWORD}'")
        listening = {"listen_addresses": "127.0.0.1", "port": self.port, "wal_level": "replica"}
        async with self._running(listening) as connection:
            yield connection

    @contextlib.asynccontextmanager
    async def _running(self, settings: Mapping[str, object]) -> AsyncIterator[asyncpg.Connection]:
        async with embedded_postgres(self.data, durable=False, settings=settings) as dsn:
            connection = await asyncpg.connect(dsn)
            try:
                yield connection
            finally:
                await connection.close(timeout=5)


@contextlib.asynccontextmanager
async def pgbouncer(folder: Path, dsn: str, *, lenient: bool) -> AsyncIterator[str]:
    """
    Run PgBouncer in transaction mode before a database; yields the DSN through it.

    Args:
        folder: Where its account may write.
        dsn: The database, on a Unix socket and without a password.
        lenient: Ignore start-up parameters that it does not know instead of refusing the connection.
    """
    assert PGBOUNCER is not None
    url = urlsplit(dsn)
    place = {key: values[0] for key, values in parse_qs(url.query).items()}
    database = url.path.lstrip("/")
    ignored = (
        "plan_cache_mode,jit,enable_seqscan,enable_bitmapscan,idle_session_timeout,statement_timeout,lock_timeout,"
        "idle_in_transaction_session_timeout,default_transaction_isolation,tcp_keepalives_idle,"
        "tcp_keepalives_interval,tcp_keepalives_count,tcp_user_timeout,extra_float_digits"
    )
    port = free_port()
    settings = folder / "pgbouncer.ini"
    settings.write_text(
        f"[databases]\n{database} = host={place['host']} port={place['port']} user={url.username}\n"
        f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\nauth_type = any\n"
        f"pool_mode = transaction\nlogfile = {folder}/pgbouncer.log\n"
        + (f"ignore_startup_parameters = {ignored}\n" if lenient else "")
    )
    account = unprivileged_account()
    as_other = ["setpriv", f"--reuid={account.uid}", f"--regid={account.gid}", "--clear-groups"]
    process = await asyncio.create_subprocess_exec(
        *(as_other if account.is_other else []),
        *(PGBOUNCER, str(settings)),
        stdout=asyncio.subprocess.DEVNULL,
        stderr=asyncio.subprocess.DEVNULL,
    )
    through = f"postgresql://{url.username}@127.0.0.1:{port}/{database}?sslmode=disable"
    try:
        await eventually(lambda: _answers(port), what=f"pgbouncer: {folder}/pgbouncer.log")
        yield through
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGINT)
        await process.wait()


async def _answers(port: int) -> bool:
    try:
        _, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return False
    writer.close()
    return True


def memory_kb(pid: int, key: str = "VmHWM") -> int:
    """What the kernel says of a process: VmRSS is now, VmHWM the most there ever was."""
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1])
    raise AssertionError(f"no {key} of process {os.fspath(str(pid))}")
