"""
Fixtures: one PostgreSQL and one Valkey for the run, a database of its own for every test.

The servers are started from wheels and end with the run; nothing on the machine is used or left behind.
With OUTBOXD_TEST_DSN (of a superuser) that PostgreSQL is used instead; its databases `outboxd_test_*` are
made and dropped by the tests.
"""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
from dataclasses import dataclass
from typing import TYPE_CHECKING
from urllib.parse import urlsplit, urlunsplit

import asyncpg
import pytest

from outboxd.embedded import embedded_postgres, embedded_valkey
from outboxd.migrate import migrate
from tests.drains import STANDARD

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

SERVER_DSN = os.environ.get("OUTBOXD_TEST_DSN", "")

# What a developer's shell happens to hold must not decide whether a test passes.
_KEPT = {"OUTBOXD_PG_BIN", "OUTBOXD_REDIS_BIN"}
for _name in [name for name in os.environ if name.startswith(("PG", "OUTBOX")) and name not in _KEPT]:
    del os.environ[_name]
# Nor what a shell has it ignore that starts it in the background: programs that are tested would ignore it, too.
for _signal in (signal.SIGINT, signal.SIGHUP):
    if signal.getsignal(_signal) == signal.SIG_IGN:
        signal.signal(_signal, signal.default_int_handler if _signal == signal.SIGINT else signal.SIG_DFL)
os.environ["PGPASSFILE"] = "/nonexistent"  # else ~/.pgpass, whose mode may be warned of

# Of this run: two runs may share the server of OUTBOXD_TEST_DSN.
_PREFIX = f"outboxd_test_{os.getpid()}"
_SETTINGS = {"autovacuum": "off", "max_connections": 200}
_numbers = itertools.count(1)


@dataclass(frozen=True)
class Postgres:
    """The run's server: `dsn` and `admin` lead to its database `postgres`, as superuser."""

    dsn: str
    admin: asyncpg.Connection

    def dsn_of(self, database: str) -> str:
        """Return the DSN of another database of this server."""
        return urlunsplit(urlsplit(self.dsn)._replace(path=f"/{database}"))


@pytest.fixture(scope="session")
async def postgres() -> AsyncIterator[Postgres]:
    if SERVER_DSN:
        async with _connected(SERVER_DSN) as server:
            yield server
    else:
        async with embedded_postgres(durable=False, settings=_SETTINGS) as dsn, _connected(dsn) as server:
            yield server


@contextlib.asynccontextmanager
async def _connected(dsn: str) -> AsyncIterator[Postgres]:
    admin = await asyncpg.connect(dsn)
    try:
        yield Postgres(dsn, admin)
    finally:
        await admin.close()


@pytest.fixture(scope="session")
def template() -> str:
    """The database that every test's database is a copy of: an empty one. Folders may choose `migrated`."""
    return "template1"


@pytest.fixture(scope="session")
async def migrated(postgres: Postgres) -> AsyncIterator[str]:
    """A database with one outbox of each kind; nobody is connected to it, or it could not be copied."""
    name = f"{_PREFIX}_migrated"
    await postgres.admin.execute(f"CREATE DATABASE {name}")
    try:
        async with _connected(postgres.dsn_of(name)) as prepared:
            await migrate(prepared.admin, STANDARD)
        yield name
    finally:
        await postgres.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def database(postgres: Postgres, template: str) -> AsyncIterator[str]:
    """The DSN of a fresh database."""
    async with _copied(postgres, template) as dsn:
        yield dsn


@pytest.fixture
async def another_database(postgres: Postgres, template: str) -> AsyncIterator[str]:
    """The DSN of another one."""
    async with _copied(postgres, template) as dsn:
        yield dsn


@contextlib.asynccontextmanager
async def _copied(postgres: Postgres, template: str) -> AsyncIterator[str]:
    name = f"{_PREFIX}_{next(_numbers)}"
    # file_copy is three times faster than the default for a small template; 14 has no other and no such word.
    strategy = "STRATEGY file_copy" if postgres.admin.get_server_version().major >= 15 else ""
    await postgres.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template} {strategy}")
    yield postgres.dsn_of(name)
    await postgres.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
async def connection(database: str) -> AsyncIterator[asyncpg.Connection]:
    async with _connected(database) as connected:
        yield connected.admin


@pytest.fixture(scope="session")
async def valkey() -> AsyncIterator[str]:
    """The URL of a Valkey server."""
    async with embedded_valkey() as url:
        yield url
