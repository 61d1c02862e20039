"""In prepared mode a failure is written before each delivery: while that is under way, its shard does not look ill."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from outboxd import diagnosis
from outboxd.query import fetch
from outboxd.sampler import Sampler
from tests.drains import DEAD, REGION, Gate, configure, draining, failures, write
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

CONFIG = configure()
TRULY_FAILING = {
    "it failed before": "UPDATE outboxd.failure SET attempts = 2",
    "it says something else": "UPDATE outboxd.failure SET last_error = 'no'",
    "that was long ago": "UPDATE outboxd.failure SET last_failed_at = now() - interval '2 minutes'",
}


async def look(connection: asyncpg.Connection, sampler: Sampler) -> dict[str, Any]:
    """Tell what each of those says that judge a shard by its failures."""
    await sampler.measure()
    stuck = await fetch(connection, diagnosis.stuck(CONFIG, [REGION], limit=10), "looking")
    [shard] = await fetch(connection, diagnosis.shards(CONFIG, [REGION], limit=10), "looking")
    return {
        "lags": sampler.samples["region"].lag_s > 90,
        "stuck": len(stuck),
        "state": shard["state"],
        "is_explained": shard["because"] is not None,
    }


@pytest.mark.parametrize("how", TRULY_FAILING)
async def test_a_delivery_under_way_is_no_failing_shard_and_one_that_died_is(
    database: str, connection: asyncpg.Connection, how: str
) -> None:
    await connection.execute(DEAD)
    await write(connection, obj=1)
    await write(connection, obj=2)
    await connection.execute("UPDATE outbox SET date_added = now() - interval '100 s'")
    gate = Gate()

    async with draining(database, gate, CONFIG) as pipeline:
        await gate.closed_behind()
        sampler = Sampler(pipeline)
        assert len(await failures(connection)) == 1
        healthy = await look(connection, sampler)
        await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 hour' WHERE id = 1")
        await connection.execute(TRULY_FAILING[how])
        ill = await look(connection, sampler)
        await sampler.session.close()
        gate.opened.set()
        await eventually(lambda: pipeline.totals()["delivered"] == 2)

    assert healthy == {"lags": True, "stuck": 0, "state": "due", "is_explained": False}
    assert ill == {"lags": False, "stuck": 1, "state": "in backoff", "is_explained": True}
