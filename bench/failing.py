"""
W7: what failing messages cost the others: 1 % of the shards fail always, and 20 % once, at their first delivery.

Were it every fifth delivery of any shard, nine shards of ten would fail, and there were no others to look at.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from bench import stage
from bench.drain import LOADS
from bench.figures import Series, Table
from outboxd import registry

if TYPE_CHECKING:
    from bench.options import Options

_failed: set[int] = set()


@registry.receiver("ACCOUNT_UPDATE")
async def fail_often(message: Any) -> None:
    """Fail for every hundredth shard, and the first time for every fifth object that begins a shard."""
    if message.shard_identifier % 100 == 0:
        raise ConnectionError("this tenant's endpoint is down")
    if message.object_identifier % 50 == 0 and message.object_identifier not in _failed:
        _failed.add(message.object_identifier)
        raise ConnectionError("the endpoint hiccups")
    (stage.delivered if is_healthy(message.shard_identifier) else stage.others).append(message.id)


def forget() -> None:
    """Let everything fail anew."""
    _failed.clear()


def is_healthy(shard: int) -> bool:
    """Tell whether a shard never fails. Of every fifth the first object fails once, of every hundredth always."""
    return shard % 5 != 0


async def measure(options: Options) -> list[Table]:
    """Compare the rows/s of the shards that never fail with W1, in turn."""
    load, _ = LOADS["W1"]
    load = load.quarter() if options.quick else load
    always, ever = load.shards // 100, load.shards // 5
    healthy = load.rows - ever * load.messages
    table = Table(
        "W7",
        f"{load}: {always:,} shards fail always, {ever - always:,} others at their first delivery; "
        f"rows/s until the {healthy:,} messages of all others are gone, beside W1.",
        [
            Series("nothing fails, rows/s"),
            Series("healthy shards, rows/s"),
            Series("healthy shards / nothing fails", 2, at_least=0.8),
            Series("failures recorded/s"),
        ],
    )
    async with stage.server() as (dsn, connection):
        for number in range(options.rounds + 1):
            await connection.execute("TRUNCATE outbox_drained, outboxd.failure")
            await connection.execute("VACUUM (ANALYZE) outbox_drained")
            async with stage.daemon(dsn) as daemon:
                plain = await daemon.retire(connection, load)
            await connection.execute("VACUUM (ANALYZE) outbox_drained")
            forget()
            with stage.log_to_a_file():
                async with stage.daemon(dsn, fail_often) as daemon:
                    retired = await daemon.retire(connection, load, within=is_healthy)
                    failures = daemon.pipeline.totals()["failures"]
            if number:
                rates = (load.rows / plain.seconds, healthy / retired.seconds)
                table.add(*rates, rates[1] / rates[0], failures / retired.seconds)
                options.say(f"W7 round {number}: {rates[1] / rates[0]:.2f} of W1")
    return [table]
