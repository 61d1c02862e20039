"""Every database here is migrated, with one outbox of each kind; `trouble` fills it with all kinds of trouble."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.operate.switched import Here
from tests.trouble import Trouble, troubled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path


@pytest.fixture(scope="session")
def template(migrated: str) -> str:
    """The database that every test's database is a copy of."""
    return migrated


@pytest.fixture
async def trouble(database: str, tmp_path: Path) -> AsyncIterator[Trouble]:
    async with troubled(database, tmp_path) as made:
        yield made


@pytest.fixture
def here(tmp_path: Path, database: str) -> Here:
    made = Here(tmp_path, database)
    made.configure()
    return made
