"""The shop's own tests through Django's runner, in a process of its own: it makes the databases, and drops them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from django.core import mail
from django.core.management import call_command
from django.test import override_settings

from tests.integration.django.conftest import CONFIG, RECEIVERS
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
    ran = await run("--parallel", str(parallel), program=SUITE, env=env, timeout_s=50)
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
        monkeypatch.delattr(mail, "outbox", raising=False)
        if is_test:
            monkeypatch.setattr(mail, "outbox", [], raising=False)
        with override_settings(OUTBOXD_CONFIG={"default": path}):
            for alias in ("default", "archive"):
                call_command("migrate", database=alias, verbosity=0)
        return [bool(each.rows("SELECT 1 WHERE to_regnamespace('other') IS NOT NULL")) for each in (db, archive)]

    assert made(is_test=False) == [False, False]
    assert made(is_test=True) == [True, False]
