"""Here every test's database is migrated, with one outbox of each kind."""

from __future__ import annotations

import pytest


@pytest.fixture(scope="session")
def template(migrated: str) -> str:
    """The database that every test's database is a copy of."""
    return migrated
