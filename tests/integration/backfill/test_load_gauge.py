"""How often the load of the outboxes is counted: a high rate must not count a long backlog every second."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outboxd import budget
from tests.walks import create_members, walking, with_models

if TYPE_CHECKING:
    import asyncpg


@pytest.mark.parametrize(("rate", "counted_again"), [(10_000, True), (1_000_000, False)])
async def test_a_look_at_a_high_rate_is_believed_for_a_while(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, rate: int, counted_again: bool
) -> None:
    monkeypatch.setattr(budget, "LOOK_SHARE", 1_000_000)
    await create_members(connection, 5)
    async with walking(database, with_models(backfills_per_minute=rate)) as backfill:
        gauge = budget.LoadGauge(backfill.config, backfill.session, lambda: database)
        assert (await gauge.measure(backfill.switchboard.now)).scheduled == 0
        await backfill.tick(paced=False)
        assert (await gauge.measure(backfill.switchboard.now)).scheduled == (5 if counted_again else 0)
