"""Fixtures of the acceptance tests: an installation of one's own for every test."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import pytest

from outboxd.embedded import embedded_postgres
from tests.acceptance.installation import RECORD_ALL, Installation
from tests.acceptance.servers import ScramServer, free_port, reachable_folder

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator
    from pathlib import Path

    import asyncpg


@pytest.fixture(scope="session")
def template() -> str:
    """Every test's database begins empty here, as a user's does."""
    return "template1"


@pytest.fixture
def bare(tmp_path: Path, database: str, connection: asyncpg.Connection) -> Installation:
    """Configured, with a receiver that accepts everything, and an empty database."""
    made = Installation(tmp_path, database, connection)
    made.receive(RECORD_ALL)
    made.configure()
    return made


@pytest.fixture
async def installation(bare: Installation) -> Installation:
    """Configured and migrated."""
    await bare.migrate()
    return bare


@pytest.fixture
def server_folder() -> Iterator[Path]:
    """A folder that the account of an embedded server may enter."""
    with contextlib.contextmanager(reachable_folder)() as folder:
        yield folder


@pytest.fixture(scope="session")
async def scram() -> AsyncIterator[ScramServer]:
    """A second server, over TCP, that asks for passwords."""
    port = free_port()
    settings = {"listen_addresses": "127.0.0.1", "port": port, "max_connections": 100}
    async with embedded_postgres(durable=False, settings=settings) as dsn:
        yield ScramServer(dsn, port)
