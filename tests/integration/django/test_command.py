"""`manage.py outboxd`, in a process of its own."""

from __future__ import annotations

import signal
from typing import TYPE_CHECKING

import pytest
from django.core.management import CommandError, call_command
from django.test import override_settings

from outboxd import producer
from outboxd.contrib.django import configuration
from tests.drains import until_empty, write
from tests.integration.django.conftest import CONFIG, RECEIVERS
from tests.processes import outboxd, run

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

    from tests.integration.django.conftest import Database

MANAGE = ("django", "outboxd", "--settings", "tests.integration.django.project")


@pytest.fixture
async def env(database: str, connection: asyncpg.Connection, tmp_path: Path) -> dict[str, str]:
    """A project with its table and one message in the outbox, which needs the model to be delivered."""
    path = tmp_path / "outboxd.toml"
    path.write_text(CONFIG.format(dsn=database, modules=f'"{RECEIVERS}"'))
    await write(connection, category="TEAM")
    return {"SHOP_DSN": database, "SHOP_CONFIG": str(path)}


async def test_once(env: dict[str, str], connection: asyncpg.Connection) -> None:
    ran = await run("--once", "--json", program=MANAGE, env=env)
    assert ran.returncode == 0, ran.stderr
    assert await connection.fetchval("SELECT count(*) FROM outbox") == 0


async def test_the_daemon(env: dict[str, str], connection: asyncpg.Connection) -> None:
    async with outboxd(program=MANAGE, env=env) as daemon:
        await until_empty(connection)
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0


async def test_its_commands_and_exit_codes(env: dict[str, str], tmp_path: Path) -> None:
    ran = await run("--", "catalog", program=MANAGE, env=env)
    assert (ran.returncode, f"{RECEIVERS}.team" in ran.stdout) == (0, True), ran.stderr
    ran = await run("catalogue", program=MANAGE, env=env)
    assert (ran.returncode, "did you mean" in ran.stderr) == (2, True)
    ran = await run("--config", str(tmp_path / "none.toml"), "catalog", program=MANAGE, env=env)
    assert (ran.returncode, "there is no file" in ran.stderr) == (78, True)


async def test_the_configuration_of_another_database(env: dict[str, str], tmp_path: Path) -> None:
    archive = tmp_path / "archive.toml"
    archive.write_text(CONFIG.format(dsn="", modules="").replace("TEAM", "ARCHIVED"))
    env = {**env, "SHOP_ARCHIVE_CONFIG": str(archive)}
    ran = await run("--database", "archive", "catalog", program=MANAGE, env=env)
    assert "ARCHIVED" in ran.stdout, ran.stderr
    ran = await run("catalog", program=MANAGE, env=env)
    assert "ARCHIVED" not in ran.stdout
    ran = await run("--database", "none", "catalog", program=MANAGE, env=env)
    assert ran.returncode == 78
    assert ran.stderr == "error: one problem:\n  - --database: The connection 'none' doesn't exist.\n"


def test_call_command(db: Database, capfd: pytest.CaptureFixture[str]) -> None:
    call_command("outboxd", "catalog")
    assert "TEAM" in capfd.readouterr().out
    with pytest.raises(CommandError, match="ended with 2") as caught:
        call_command("outboxd", "catalogue")
    assert caught.value.returncode == 2
    call_command("outboxd", "--once", "--json")
    assert '"delivered":0' in capfd.readouterr().out
    assert producer.default() is configuration.producer_of("default")
    call_command("outboxd", "catalog", "--json", database="default")
    assert "TEAM" in capfd.readouterr().out
    said = "names no configuration for the database archive"
    with override_settings(OUTBOXD_CONFIG={}), pytest.raises(CommandError, match=said) as caught:
        call_command("outboxd", "--database", "archive", "catalog")
    assert caught.value.returncode == 78
