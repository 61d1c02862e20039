"""Here every test's database is migrated, with one outbox of each kind."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests.integration.operate.switched import Here

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def template(migrated: str) -> str:
    """The database that every test's database is a copy of."""
    return migrated


@pytest.fixture
def here(tmp_path: Path, database: str) -> Here:
    made = Here(tmp_path, database)
    made.configure()
    return made
