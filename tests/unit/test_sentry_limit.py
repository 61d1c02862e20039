"""How many failures are sent to Sentry."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from outboxd.sentry import CAPTURES_A_SECOND_MAX, _Limit
from tests.unit.test_operations_docs import DOCUMENT

if TYPE_CHECKING:
    import pytest


def test_of_very_many_failures_a_second_some_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    now = 7.5
    monkeypatch.setattr(time, "monotonic", lambda: now)
    limit = _Limit()

    first = [limit.admits() for _ in range(2 * CAPTURES_A_SECOND_MAX)]
    now = 8.1
    later = [limit.admits() for _ in range(CAPTURES_A_SECOND_MAX)]

    assert first == [True] * CAPTURES_A_SECOND_MAX + [False] * CAPTURES_A_SECOND_MAX
    assert all(later)


def test_how_many_is_documented() -> None:
    assert f"up to {CAPTURES_A_SECOND_MAX} a second" in " ".join(DOCUMENT.split())
