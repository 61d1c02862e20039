"""W6: receivers that wait 20 ms for something else, at three concurrencies."""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any

from bench import stage
from bench.figures import Series, Table
from bench.load import Load
from outboxd import registry
from outboxd.config import DrainConfig

if TYPE_CHECKING:
    from bench.options import Options

WAIT_S = 0.02
GOALS = {5: 0.95, 50: 0.95, 500: 0.8}
DELIVERIES_A_DRAINER = 200


@registry.receiver("ACCOUNT_UPDATE")
async def wait(message: Any) -> None:
    """Wait for what a real receiver would wait for."""
    await asyncio.sleep(WAIT_S)
    stage.delivered.append(message.id)


async def measure(options: Options) -> list[Table]:
    """Compare deliveries/s with what so many receivers could do at best, and with tasks that do nothing but sleep."""
    each = options.scaled(DELIVERIES_A_DRAINER, 4)
    table = Table(
        "W6",
        f"Receivers that sleep 20 ms; {each} deliveries a drainer, ten messages a shard. An event loop's timers are"
        " late by up to a millisecond, so bare tasks that only sleep do not reach the quotient either.",
        [
            *(Series(f"{concurrency} at once: deliveries/s") for concurrency in GOALS),
            *(Series(f"{c} at once: / ({c} / 20 ms)", 3, at_least=goal) for c, goal in GOALS.items()),
            *(Series(f"{c} at once: / bare sleeps", 3) for c in GOALS),
        ],
    )
    async with stage.server() as (dsn, connection):
        for number in range(options.rounds + 1):
            rates, bare = [], []
            for concurrency in GOALS:
                bare.append(await _bare(concurrency, each))
                load = Load(concurrency * each // 10, 10, 10)
                async with stage.daemon(dsn, wait, drain=DrainConfig(concurrency=concurrency)) as daemon:
                    retired = await daemon.retire(connection, load)
                rates.append(load.rows / retired.seconds)
            if number:
                shares = [rate * WAIT_S / concurrency for rate, concurrency in zip(rates, GOALS, strict=True)]
                table.add(*rates, *shares, *(rate / floor for rate, floor in zip(rates, bare, strict=True)))
                options.say(f"W6 round {number}: " + ", ".join(f"{share:.3f}" for share in shares))
    return [table]


async def _bare(tasks: int, each: int) -> float:
    """Sleeps a second of so many tasks."""

    async def sleep() -> None:
        for _ in range(each):
            await asyncio.sleep(WAIT_S)

    started_at = time.perf_counter()
    await asyncio.gather(*(sleep() for _ in range(tasks)))
    return tasks * each / (time.perf_counter() - started_at)
