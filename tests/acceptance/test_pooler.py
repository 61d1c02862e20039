"""PgBouncer in transaction mode, where session locks would be stranded."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.acceptance.servers import PGBOUNCER, pgbouncer

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.installation import Installation

pytestmark = pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer")

ENQUEUE = ["enqueue", "EVENT", "--shard", "1", "--object", "1"]

# Strict, it refuses our start-up parameters; lenient, it takes the connection and gives us any server process.
either_way = pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])


@either_way
@pytest.mark.parametrize("arguments", [[], ["--once"]], ids=["daemon", "once"])
async def test_a_pooler_is_refused_before_any_lock_is_taken(
    installation: Installation, server_folder: Path, lenient: bool, arguments: list[str]
) -> None:
    ids = await installation.insert([1])
    async with pgbouncer(server_folder, installation.dsn, lenient=lenient) as through:
        installation.configure(dsn=through)

        process = await installation.run(*arguments)

        assert process.returncode == 78, process.stderr
        assert "session_dsn" in process.stderr
        assert "Traceback" not in process.stderr
        assert await installation.left_behind() == []
        assert await installation.ids() == set(ids)


@either_way
async def test_with_a_direct_session_dsn_the_daemon_works(
    installation: Installation, server_folder: Path, lenient: bool
) -> None:
    async with pgbouncer(server_folder, installation.dsn, lenient=lenient) as through:
        installation.configure(dsn=through, session_dsn=installation.dsn)
        async with installation.ready_daemon() as daemon:
            await installation.insert(range(20), objects=range(5))
            await installation.drained(by=daemon)


@either_way
async def test_with_a_direct_session_dsn_once_works(
    installation: Installation, server_folder: Path, lenient: bool
) -> None:
    await installation.insert([1])
    async with pgbouncer(server_folder, installation.dsn, lenient=lenient) as through:
        installation.configure(dsn=through, session_dsn=installation.dsn)
        summary = await installation.once()

    assert (summary["delivered"], summary["remaining_due"]) == (1, 0)


@either_way
async def test_check_finds_the_pooler(installation: Installation, server_folder: Path, lenient: bool) -> None:
    async with pgbouncer(server_folder, installation.dsn, lenient=lenient) as through:
        installation.configure(dsn=through)
        alone = await installation.run("check")
        installation.configure(dsn=through, session_dsn=installation.dsn)
        beside = await installation.run("check")

    assert alone.returncode == 78, alone.stdout + alone.stderr
    assert "session_dsn" in alone.stdout
    assert beside.returncode == 0, beside.stdout + beside.stderr


@either_way
async def test_migrate_refuses_a_pooler(bare: Installation, server_folder: Path, lenient: bool) -> None:
    async with pgbouncer(server_folder, bare.dsn, lenient=lenient) as through:
        bare.configure(dsn=through)
        process = await bare.run("migrate")

    assert process.returncode == 78, process.stdout + process.stderr
    assert "session_dsn" in process.stderr
    assert await bare.count("SELECT count(*) FROM pg_namespace WHERE nspname = 'outboxd'") == 0


@either_way
async def test_enqueue_works_through_a_pooler(installation: Installation, server_folder: Path, lenient: bool) -> None:
    """Again and again: server processes are shared, and statements of one client meet those of another."""
    async with pgbouncer(server_folder, installation.dsn, lenient=lenient) as through:
        installation.configure(dsn=through)
        for count in (1, 2, 3):
            process = await installation.run(*ENQUEUE)
            assert process.returncode == 0, process.stderr
            assert await installation.count() == count
