"""W10: two and four daemons, processes of their own, on one database, beside one."""

from __future__ import annotations

import asyncio
import contextlib
import sys
import time
from collections import Counter
from typing import TYPE_CHECKING, Any

import psutil

from bench import stage
from bench.drain import LOADS
from bench.errors import FailedError
from bench.figures import Series, Table
from outboxd import log, registry
from outboxd.main import run_in_loop

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from bench.options import Options

DAEMONS = (1, 2, 4)
KNOWN_S = 3.0
"""Until daemons know of each other."""
_received: list[int] = []


@registry.receiver("ACCOUNT_UPDATE")
async def note(message: Any) -> None:
    """Note what came, so that nothing that comes twice goes unseen."""
    _received.append(message.id)


async def measure(options: Options) -> list[Table]:
    """Measure from the commit of the rows until the table is empty, all daemons being idle before."""
    load, _ = LOADS["W1"]
    table = Table(
        "W10",
        f"{load}, by so many daemons; looked at from outside every 5 ms. Each message comes once, else this ends.",
        [
            *(Series(f"{_daemons_text(count)}, rows/s") for count in DAEMONS),
            Series("2 daemons / 1", 2, at_least=1.0),
            Series("4 daemons / 1", 2, at_least=1.0),
            *(Series(f"{_daemons_text(count)}: both processors busy, %") for count in DAEMONS),
        ],
    )
    async with stage.server() as (dsn, connection):
        for number in range(options.rounds + 1):
            rates, busy = [], []
            for count in DAEMONS:
                await connection.execute("VACUUM (ANALYZE) outbox_drained")
                async with _daemons(dsn, count) as received:
                    await connection.execute(load.fill("outbox_drained"))
                    started_at = time.perf_counter()
                    psutil.cpu_percent()  # what follows is since here
                    await stage.until_empty(connection)
                    busy.append(psutil.cpu_percent())
                    rates.append(load.rows / (time.perf_counter() - started_at))
                await stage.require_empty(connection)
                if len(received) != load.rows or received.total() != load.rows:
                    raise FailedError(f"{load.rows} messages: {len(received)} were delivered, {received.total()} times")
            if number:
                table.add(*rates, rates[1] / rates[0], rates[2] / rates[0], *busy)
                options.say(f"W10 round {number}: {rates[1] / rates[0]:.2f}, {rates[2] / rates[0]:.2f}")
    return [table]


def _daemons_text(count: int) -> str:
    return "one daemon" if count == 1 else f"{count} daemons"


@contextlib.asynccontextmanager
async def _daemons(dsn: str, count: int) -> AsyncIterator[Counter[int]]:
    """Run daemons, each a process; the counter is filled with what they were given when the block has ended."""
    async with contextlib.AsyncExitStack() as stack:
        programs = [stage.program("bench.several", dsn) for _ in range(count)]
        processes = [await stack.enter_async_context(program) for program in programs]
        for process in processes:
            assert process.stdout is not None
            await process.stdout.readline()  # ready
        await asyncio.sleep(KNOWN_S)
        received: Counter[int] = Counter()
        yield received
        for process in processes:
            stdout, _ = await process.communicate(b"\n")
            received.update(map(int, stdout.split()))


async def _serve(dsn: str) -> None:
    log.configure("json", "warning")
    async with stage.daemon(dsn, note):
        print("ready", flush=True)
        await asyncio.to_thread(sys.stdin.readline)
    print(" ".join(map(str, _received)))


if __name__ == "__main__":
    run_in_loop(_serve(sys.argv[1]))
