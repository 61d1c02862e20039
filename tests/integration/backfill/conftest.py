"""Here every test's database is migrated, with one outbox of each kind."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import pytest

from outboxd import budget
from tests.integration.backfill.commands import Here

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture(scope="session")
def template(migrated: str) -> str:
    """The database that every test's database is a copy of."""
    return migrated


@pytest.fixture(autouse=True)
def fresh_loads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Count the load at each tick, also where that takes long: a slow machine would go on believing the last one."""
    monkeypatch.setattr(budget, "LOOK_S_MAX", math.inf)


@pytest.fixture
def here(tmp_path: Path, database: str) -> Here:
    made = Here(tmp_path, database)
    made.configure()
    return made
