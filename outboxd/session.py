"""
Connections to PostgreSQL: how they are opened, and what their errors become.

Only this module turns driver errors into ours, by SQLSTATE, never by message text.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import socket
import ssl
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from operator import itemgetter
from types import MappingProxyType
from typing import Any

import asyncpg

from outboxd import dsn, errors

CONNECT_TIMEOUT_S = 10.0
CLIENT_WAITS_S = 10.0
"""So much later than the server the client gives up on a statement, so that the server's own words are heard."""

Fetch = Callable[..., Awaitable[list[asyncpg.Record]]]
"""Runs a statement with its arguments inside a transaction."""

# A plan that was made while the table was empty stays in use when 200 000 rows arrive: finds took 1 539 ms instead
# of 0.3. Statements of a hot session are planned for their index, which is the right plan at any size, and each time
# unless they leave no choice at all. As start-up parameters, because a later SET is undone by RESET ALL.
HOT_SETTINGS = {
    "plan_cache_mode": "force_custom_plan",
    "jit": "off",
    "enable_seqscan": "off",
    "enable_bitmapscan": "off",
    "enable_sort": "off",
    "enable_incremental_sort": "off",
    "idle_session_timeout": "0",
    "idle_in_transaction_session_timeout": "60000",
    "default_transaction_isolation": "read committed",
    # The server notices a dead client, and frees its locks, after 30 s.
    "tcp_keepalives_idle": "15",
    "tcp_keepalives_interval": "5",
    "tcp_keepalives_count": "3",
    "tcp_user_timeout": "30000",
}

PLANNED_ONCE = {"plan_cache_mode": "force_generic_plan"}
"""For statements that leave the planner no choice (ADR 0006, 0013): planning took longer than a small look-up."""

_NO_SETTINGS: Mapping[str, str] = MappingProxyType({})
_CONSTRAINT_CLASS = "23"
_AUTHENTICATION_CLASS = "28"
_UNKNOWN_DATABASE = "3D000"
_UNSUPPORTED_STARTUP_PARAMETER = "08P01"
_READ_ONLY = "25006"
_UNAVAILABLE = {
    _READ_ONLY,  # read-only transaction: a standby that has not been promoted yet
    "53300",  # too many connections
    "57P01",  # the administrator ended the session
    "57P02",
    "57P03",  # starting up, shutting down, in recovery
    "57P04",
    "57P05",
}
_READ_ONLY_HINT = "It is a standby, or transactions are read-only by default: `outboxd check` says which."
_UNREACHABLE = "Look whether PostgreSQL runs there, and whether host and port of the DSN are right."
_UNTRUSTED = (
    "Check that sslrootcert names the authority of the server's certificate, and that it is made out to this host."
)
_MISSING = {"42P01": "table", "42703": "column", "3F000": "schema", "42883": "function"}
_PRIVILEGE = "42501"


def translate(exc: BaseException, doing: str) -> errors.OutboxdError:
    """
    Turn an error of the driver or the network into one of ours.

    Args:
        exc: What asyncpg or the operating system raised.
        doing: What we were about, e.g. `reading public.outbox`; opens the message.
    """
    if isinstance(exc, errors.OutboxdError):
        return exc
    if isinstance(exc, asyncpg.PostgresError):
        return _translate_server(exc, doing)
    if isinstance(exc, asyncpg.ClientConfigurationError):
        return errors.ConfigError([f"dsn: {exc}"])
    # A certificate that does not verify is both kinds of error, and one that is renewed does help.
    if isinstance(exc, ValueError) and not isinstance(exc, OSError):  # asyncpg cannot encode an argument
        return errors.StatementFailed(f"{doing}: {exc}")
    if isinstance(exc, (OSError, asyncpg.InterfaceError, TimeoutError, asyncpg.InternalClientError)):
        text = "no answer in time" if isinstance(exc, TimeoutError) and not str(exc) else str(exc)
        return errors.StoreUnavailable(f"{doing}: {text or type(exc).__name__}")
    return errors.StatementFailed(f"{doing}: {type(exc).__name__}: {exc}")


def _translate_server(exc: asyncpg.PostgresError, doing: str) -> errors.OutboxdError:
    state = exc.sqlstate or ""
    if state.startswith(_AUTHENTICATION_CLASS):
        return errors.ConfigError(
            [f"dsn: the database refuses the login: {exc}"],
            hint="Check user and password (OUTBOX_DSN, or OUTBOX_DSN_FILE for a secret that rotates).",
        )
    if state == _UNKNOWN_DATABASE:
        return errors.ConfigError([f"dsn: {exc}"], hint="Create the database, or name another one.")
    if state.startswith("08") or state in _UNAVAILABLE:
        if state == _READ_ONLY:
            return errors.StoreUnavailable(f"{doing}: the database takes no writes ({exc})", hint=_READ_ONLY_HINT)
        return errors.StoreUnavailable(f"{doing}: {exc}")
    if state in _MISSING:
        return errors.SchemaError(f"{doing}: {exc}", hint="Run `outboxd migrate`.")
    if state == _PRIVILEGE:
        return errors.PrivilegeError(f"{doing}: {exc}", hint="Run `outboxd check`: it names the missing GRANT.")
    # The details of a constraint are the row itself.
    text = exc.args[0] if state.startswith(_CONSTRAINT_CLASS) else exc
    return errors.StatementFailed(f"{doing}: {text}", sqlstate=state)


async def connect(dsn_text: str, *, name: str, settings: dict[str, str] | None = None) -> asyncpg.Connection:
    """
    Open one connection.

    Args:
        dsn_text: A DSN as providers print it; empty means libpq's own variables.
        name: What the session is for; shown in `pg_stat_activity` as `outboxd: <name>`.
        settings: Start-up parameters; None for a session that may go through a pooler.

    Raises:
        ConfigError: The DSN, the login or the database name is wrong.
        PoolerError: A pooler refuses the start-up parameters.
        StoreUnavailable: Nobody answers, or not in time.
    """
    arguments = dsn.connect_arguments(dsn_text)
    doing = (
        f"connecting to {dsn.masked(dsn_text)}" if dsn_text else "connecting (no dsn is set; libpq's variables apply)"
    )
    server_settings = {**arguments.pop("server_settings", {}), "application_name": f"outboxd: {name}"}
    arguments.setdefault("timeout", CONNECT_TIMEOUT_S)
    # Behind a pooler a prepared statement may be looked for on another server process: without settings of its own
    # a session has none, so that commands work there inside one transaction.
    cache_size = 100 if settings else 0
    try:
        connection: asyncpg.Connection = await asyncpg.connect(
            **arguments,
            server_settings={**server_settings, **(settings or {})},
            statement_cache_size=cache_size,
            command_timeout=120,
        )
    except asyncpg.PostgresError as exc:
        if exc.sqlstate == _UNSUPPORTED_STARTUP_PARAMETER and "startup parameter" in str(exc):
            raise pooler_error() from exc
        raise translate(exc, doing) from exc
    except Exception as exc:
        error = translate(exc, doing)
        if isinstance(error, errors.StoreUnavailable) and not error.hint:
            error.hint = _hint(exc, dsn_text)
        raise error from exc
    _keep_alive(connection)
    return connection


def _hint(exc: Exception, dsn_text: str) -> str:
    if isinstance(exc, ssl.SSLCertVerificationError):
        return _UNTRUSTED
    return _UNREACHABLE if dsn_text else "Set OUTBOX_DSN, or dsn in the configuration."


async def close_quietly(connection: asyncpg.Connection) -> None:
    """Say goodbye, for at most two seconds; whatever goes wrong with that is of no consequence."""
    try:
        await connection.close(timeout=2)
    except Exception:
        connection.terminate()


@contextlib.asynccontextmanager
async def visit(dsn_text: str, *, name: str) -> AsyncIterator[asyncpg.Connection]:
    """
    Open a connection for a moment.

    Raises:
        OutboxdError: Of `connect`, and of whatever fails inside.
    """
    connection = await connect(dsn_text, name=name)
    try:
        yield connection
    except Exception as exc:
        raise translate(exc, name) from exc
    finally:
        await close_quietly(connection)


def pooler_error() -> errors.PoolerError:
    """Build the error for a pooler in between: what it would break and what to set."""
    return errors.PoolerError(
        "a connection pooler stands between outboxd and the database: its session locks would be stranded",
        hint="Set session_dsn (OUTBOX_SESSION_DSN) to a direct connection to PostgreSQL.",
    )


async def refuse_pooler(connection: asyncpg.Connection) -> None:
    """
    Refuse a connection whose server process is not the one that greeted us.

    Raises:
        PoolerError: The backend pid of the greeting and `pg_backend_pid()` differ.
        StoreUnavailable: The connection is gone.
    """
    try:
        backend = await connection.fetchval("SELECT pg_backend_pid()")
    except Exception as exc:
        raise translate(exc, "asking who answers") from exc
    if backend != connection.get_server_pid():
        raise pooler_error()


def _keep_alive(connection: asyncpg.Connection) -> None:
    """Let the kernel notice a dead server after 30 s, also while we only listen."""
    transport = getattr(connection, "_transport", None)  # asyncpg has no public way to its socket
    sock = transport.get_extra_info("socket") if transport is not None else None
    if sock is None or sock.family == socket.AF_UNIX:
        return
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, value in (("TCP_KEEPIDLE", 15), ("TCP_KEEPINTVL", 5), ("TCP_KEEPCNT", 3)):
        if hasattr(socket, option):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, option), value)


def _as_tuple(instant: int) -> tuple[int]:
    return (instant,)


class Session:
    """
    One connection that is opened when first needed and again after it was lost.

    Statements run one after another, whoever calls. Timestamps come and go as `Instant`s. Every error leaves as one
    of ours; after one that may have left the connection in an unknown state it is closed, and the next call opens a
    new one.

    Args:
        dsn_text: Tells where to connect; asked again at every reconnect, because passwords rotate.
        name: What the session is for.
        lock_timeout_s: How long a statement waits for a lock.
        statement_timeout_s: How long a statement may take.
        settings: Start-up parameters beside those of every hot session.
        is_direct: Whether it must not go through a pooler, because it is to hold locks.
        has_instants: Whether timestamps are `Instant`s; else they are datetimes, for people's eyes.
    """

    def __init__(
        self,
        dsn_text: Callable[[], str],
        *,
        name: str,
        lock_timeout_s: float,
        statement_timeout_s: float,
        settings: Mapping[str, str] = _NO_SETTINGS,
        is_direct: bool = False,
        has_instants: bool = True,
    ) -> None:
        self._dsn = dsn_text
        self._is_direct = is_direct
        self._has_instants = has_instants
        self.name = name
        self.round_trips = 0
        """Statements sent since the start, those that begin and end transactions included."""
        self.answered_at = 0.0
        """When it last answered, monotonic seconds."""
        self._timeout_s = statement_timeout_s + CLIENT_WAITS_S
        self._settings = {
            **HOT_SETTINGS,
            **settings,
            "lock_timeout": str(int(lock_timeout_s * 1000)),
            "statement_timeout": str(int(statement_timeout_s * 1000)),
        }
        self._connection: asyncpg.Connection | None = None
        self._turnstile = asyncio.Lock()
        self._opened = 0

    @property
    def life(self) -> int:
        """The number of the open connection, 0 when none is: what a session holds is gone with its connection."""
        return 0 if self._connection is None or self._connection.is_closed() else self._opened

    @property
    def is_busy(self) -> bool:
        """Whether a statement is under way, or waits for its turn."""
        return self._turnstile.locked()

    async def fetch(self, doing: str, statement: str, *args: Any) -> list[asyncpg.Record]:
        """
        Run one statement and return its rows.

        Raises:
            StoreUnavailable: The connection is gone or nobody answers; safe to try again later.
            SchemaError: A table, column or privilege is missing.
            StatementFailed: The server refused (`sqlstate` says why: 55P03 is a lock timeout).
        """
        async with self._guard(doing) as connection:
            return await self._send(connection, statement, *args)

    async def execute(self, doing: str, statement: str, *args: Any) -> int:
        """Run one statement and tell how many rows it has touched; errors as above."""
        async with self._guard(doing) as connection:
            self.round_trips += 1
            status: str = await connection.execute(statement, *args, timeout=self._timeout_s)
            self.answered_at = time.monotonic()
            return int(status.rpartition(" ")[2])

    async def fetch_many(self, doing: str, statement: str, each: Sequence[Sequence[Any]]) -> list[asyncpg.Record]:
        """Run a statement once for each list of arguments, in one transaction and one round trip; errors as above."""
        async with self._guard(doing) as connection:
            self.round_trips += 1
            rows: list[asyncpg.Record] = await connection.fetchmany(statement, each, timeout=self._timeout_s)
            self.answered_at = time.monotonic()
            return rows

    @contextlib.asynccontextmanager
    async def transaction(self, doing: str) -> AsyncIterator[Fetch]:
        """Open a transaction and yield a function that runs statements in it; errors as in `fetch`."""
        async with self._guard(doing) as connection, connection.transaction():
            self.round_trips += 2
            yield functools.partial(self._send, connection)

    async def _send(self, connection: asyncpg.Connection, statement: str, *args: Any) -> list[asyncpg.Record]:
        self.round_trips += 1
        rows: list[asyncpg.Record] = await connection.fetch(statement, *args, timeout=self._timeout_s)
        self.answered_at = time.monotonic()
        return rows

    @contextlib.asynccontextmanager
    async def _guard(self, doing: str) -> AsyncIterator[asyncpg.Connection]:
        async with self._turnstile:
            connection = await self._open()
            try:
                yield connection
            except asyncpg.PostgresError as exc:
                self._drop_unless_idle()
                if exc.sqlstate == _READ_ONLY:  # a standby, where several hosts are named: another may be the primary
                    self.terminate()
                raise translate(exc, doing) from exc
            except Exception as exc:
                self.terminate()
                raise translate(exc, doing) from exc
            except BaseException:
                self.terminate()
                raise

    async def _open(self) -> asyncpg.Connection:
        if self._connection is None or self._connection.is_closed():
            connection = await connect(self._dsn(), name=self.name, settings=self._settings)
            try:
                await self._prepare(connection)
            except BaseException as exc:
                connection.terminate()
                if isinstance(exc, Exception):
                    raise translate(exc, f"opening session {self.name}") from exc
                raise
            self._connection = connection
            self._opened += 1
        return self._connection

    async def _prepare(self, connection: asyncpg.Connection) -> None:
        if self._is_direct:
            await refuse_pooler(connection)
        if await connection.fetchval("SELECT pg_is_in_recovery()"):
            raise errors.StoreUnavailable("the database is a standby (in recovery): nothing can be done on it")
        if not self._has_instants:
            return
        # A datetime costs 0.48 of the 1.6 µs that a message takes to decode, and most are only compared.
        await connection.set_type_codec(
            "timestamptz", schema="pg_catalog", format="tuple", encoder=_as_tuple, decoder=itemgetter(0)
        )

    def terminate(self) -> None:
        """Close at once, without a word to the server; whatever was under way is rolled back."""
        if self._connection is not None:
            self._connection.terminate()
            self._connection = None

    async def close(self) -> None:
        """Say goodbye, for at most two seconds."""
        if self._connection is not None:
            await close_quietly(self._connection)
            self._connection = None

    def _drop_unless_idle(self) -> None:
        """Keep the connection only when it is certainly between statements."""
        connection = self._connection
        if connection is not None and (connection.is_closed() or connection.is_in_transaction()):
            self.terminate()
