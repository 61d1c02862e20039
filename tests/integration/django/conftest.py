"""
A Django project whose databases are those of the test.

The tests are plain functions: Django refuses to be used in a thread where an event loop runs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import django
import psycopg
import pytest
from django.conf import settings
from django.core.management import call_command
from django.db import connections
from django.test import override_settings

from tests.integration.django import project

if not settings.configured:  # not as a module: that would set the time zone of this process
    settings.configure(**{name: value for name, value in vars(project).items() if name.isupper()})
    django.setup()

from outboxd.contrib.django import configuration
from tests.integration.django.shop import receivers

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    from tests.conftest import Postgres

CONFIG = """\
dsn = "{dsn}"
[receivers]
modules = [{modules}]
[[outbox]]
name = "region"
table = "outbox"
[scopes.ORGANIZATION_SCOPE]
value = 0
[categories.MEMBER]
value = 1
scope = "ORGANIZATION_SCOPE"
[categories.ACCOUNT]
value = 3
scope = "ORGANIZATION_SCOPE"
[categories.TEAM]
value = 2
scope = "ORGANIZATION_SCOPE"
"""
RECEIVERS = "tests.integration.django.shop.receivers"


class Database:
    """One of the databases, seen from outside: what is committed."""

    def __init__(self, dsn: str) -> None:
        self.dsn = dsn
        self.name = urlsplit(dsn).path[1:]
        self._connection = psycopg.connect(dsn, autocommit=True)

    def rows(self, statement: str = "SELECT shard_identifier, object_identifier FROM outbox ORDER BY id") -> list[Any]:
        return self._connection.execute(statement.encode()).fetchall()

    def taken(self) -> list[tuple[Any, ...]]:
        """Take the messages out: shard, object, payload."""
        rows = self.rows("DELETE FROM outbox RETURNING id, shard_identifier, object_identifier, payload")
        return [row[1:] for row in sorted(rows, key=lambda row: row[0])]

    @property
    def objects(self) -> list[Any]:
        return [row[1] for row in self.rows()]

    def close(self) -> None:
        self._connection.close()


@pytest.fixture(scope="session")
def template(postgres: Postgres, migrated: str) -> Iterator[str]:
    """The database that every test's database is a copy of: outboxd's tables are there, and those of the project."""
    name = f"{migrated}_django"
    with psycopg.connect(postgres.dsn, autocommit=True) as server:
        server.execute(f"CREATE DATABASE {name} TEMPLATE {migrated}".encode())
        connections["default"].settings_dict.update(project.database(postgres.dsn_of(name)))
        call_command("migrate", verbosity=0)
        connections["default"].close()
        yield name
        server.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture
async def archive_database(postgres: Postgres, template: str, database: str) -> AsyncIterator[str]:
    name = f"{urlsplit(database).path[1:]}_archive"
    await postgres.admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}")
    yield postgres.dsn_of(name)
    await postgres.admin.execute(f"DROP DATABASE {name} WITH (FORCE)")


@pytest.fixture
def db(database: str, tmp_path: Path) -> Iterator[Database]:
    """The project, its tables in the default database, and a configuration with receivers."""
    path = tmp_path / "outboxd.toml"
    path.write_text(CONFIG.format(dsn=database, modules=f'"{RECEIVERS}"'))
    with override_settings(OUTBOXD_CONFIG=path):
        yield from _opened("default", database)


@pytest.fixture
def daemons_db(db: Database, tmp_path: Path) -> Database:
    """The same, in a process that has no receivers: the daemon delivers."""
    (tmp_path / "outboxd.toml").write_text(CONFIG.format(dsn=db.dsn, modules=""))
    return db


@pytest.fixture
def archive(db: Database, archive_database: str, tmp_path: Path) -> Iterator[Database]:
    """A second database, with a configuration of its own."""
    path = tmp_path / "archive.toml"
    path.write_text(CONFIG.format(dsn=archive_database, modules=f'"{RECEIVERS}"'))
    with override_settings(OUTBOXD_CONFIG={"default": tmp_path / "outboxd.toml", "archive": str(path)}):
        yield from _opened("archive", archive_database)


def as_test(db: Database, monkeypatch: pytest.MonkeyPatch, alias: str = "default") -> None:
    """Let a database be one that Django has made for tests: the settings have had another name, and call those so."""
    monkeypatch.setitem(configuration._names, alias, "shop")
    monkeypatch.setitem(connections[alias].settings_dict["TEST"], "NAME", db.name)


def _opened(alias: str, dsn: str) -> Iterator[Database]:
    connections[alias].close()
    connections[alias].settings_dict.update(project.database(dsn))
    configuration.note_names()
    receivers.forget()
    opened = Database(dsn)
    yield opened
    opened.close()
    connections[alias].close()
    configuration.close_flushers()
