"""The shop's own tests through Django's runner, in a process of its own: it makes the databases, and drops them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
from django.core import mail
from django.core.management import call_command
from django.db import connections, transaction
from django.test import override_settings

from outboxd.contrib.django import outbox_context
from tests.integration.django.conftest import CONFIG, RECEIVERS, as_test
from tests.processes import run

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

    from tests.integration.django.conftest import Database

SUITE = ("django", "test", "tests.integration.django.shop", "--settings", "tests.integration.django.project")


@pytest.mark.parametrize("parallel", [1, 2])
async def test_a_suite(database: str, connection: asyncpg.Connection, tmp_path: Path, parallel: int) -> None:
    path = tmp_path / "outboxd.toml"
    path.write_text(CONFIG.format(dsn="host=/nowhere", modules=f'"{RECEIVERS}"'))
    env = {"SHOP_DSN": database, "SHOP_CONFIG": str(path), "SHOP_ARCHIVE_CONFIG": str(path), "PYTHONWARNINGS": "error"}
    ran = await run("--parallel", str(parallel), program=SUITE, env=env)
    assert (ran.returncode, "OK" in ran.stderr_lines, "Ran 6 tests" in ran.stderr) == (0, True, True), ran.stderr
    assert ("Cloning test database for alias 'archive'..." in ran.stderr_lines) == (parallel > 1)
    left = "SELECT count(*) FROM pg_database WHERE datname LIKE current_database() || '\\_%made%'"
    assert await connection.fetchval(left) == 0


def test_the_migrations_are_those_of_the_models(db: Database) -> None:
    call_command("makemigrations", check_changes=True, dry_run=True)


def test_outside_of_tests_and_elsewhere_nothing_is_made(
    db: Database, archive: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "other.toml"
    path.write_text('schema = "other"\n' + CONFIG.format(dsn="host=/nowhere", modules=""))

    def made(is_test: bool) -> list[bool]:
        if is_test:
            as_test(db, monkeypatch)
            as_test(archive, monkeypatch, "archive")
        with override_settings(OUTBOXD_CONFIG={"default": path}):
            for alias in ("default", "archive"):
                call_command("migrate", database=alias, verbosity=0)
        return [bool(each.rows("SELECT 1 WHERE to_regnamespace('other') IS NOT NULL")) for each in (db, archive)]

    assert made(is_test=False) == [False, False]
    assert made(is_test=True) == [True, False]


@pytest.mark.parametrize("outboxes", [True, False])
def test_only_what_is_there_is_emptied(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, outboxes: bool
) -> None:
    as_test(db, monkeypatch)
    path = tmp_path / "other.toml"
    other = CONFIG.format(dsn="", modules="").replace('"outbox"', '"not_there"')
    path.write_text(other if outboxes else 'dsn = ""\n')
    db.rows("INSERT INTO outboxd.pause (kind, category) VALUES ('category', 2) RETURNING id")
    with override_settings(OUTBOXD_CONFIG=path):
        call_command("flush", verbosity=0, interactive=False)
    assert db.rows("SELECT id FROM outboxd.pause") == []


@pytest.mark.parametrize("named", ["none.toml", {}])
def test_what_was_made_is_emptied_whatever_a_test_names(
    db: Database, monkeypatch: pytest.MonkeyPatch, named: Any
) -> None:
    as_test(db, monkeypatch)
    call_command("migrate", verbosity=0)
    with outbox_context() as outbox:
        outbox.save("TEAM", shard_identifier=7, object_identifier=1)
    with override_settings(OUTBOXD_CONFIG=named):
        call_command("flush", verbosity=0, interactive=False)
    assert db.rows() == []


def test_outside_of_tests_nothing_is_emptied(db: Database, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mail, "outbox", [], raising=False)  # as the e-mail backend `locmem` does
    with outbox_context() as outbox:
        outbox.save("TEAM", shard_identifier=7, object_identifier=1)
    call_command("flush", verbosity=0, interactive=False)
    assert db.objects == [1]


CAPTURE = """\
[[model]]
table = "shop_plain"
outbox = "region"
category = "MEMBER"
shard_identifier = "id"
capture = true
"""


def test_a_test_may_migrate_an_application_back(db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    as_test(db, monkeypatch)
    path = tmp_path / "outboxd.toml"
    path.write_text(path.read_text() + CAPTURE)
    triggers = "SELECT DISTINCT tgrelid::regclass::text FROM pg_trigger WHERE NOT tgisinternal"
    call_command("migrate", verbosity=0)
    assert db.rows(triggers) == [("shop_plain",)]
    with transaction.atomic():  # as in a `TestCase`: no other connection would see it
        call_command("migrate", "shop", "zero", verbosity=0)
        transaction.set_rollback(True)
    call_command("migrate", "shop", "zero", verbosity=0)
    assert db.rows(triggers) == []
    call_command("migrate", "shop", verbosity=0)
    assert db.rows(triggers) == [("shop_plain",)]


async def test_an_event_loop_may_run_where_databases_are_made(
    db: Database, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As with pytest-playwright."""
    as_test(db, monkeypatch)
    path = tmp_path / "other.toml"
    path.write_text('schema = "other"\n' + CONFIG.format(dsn="", modules=""))
    monkeypatch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "1")
    with override_settings(OUTBOXD_CONFIG=path):
        call_command("migrate", verbosity=0)
        connections.close_all()  # those of this loop
    assert db.rows("SELECT 1 WHERE to_regnamespace('other') IS NOT NULL")
