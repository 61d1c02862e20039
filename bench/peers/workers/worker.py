"""
What every worker process has in common. It runs in the environment of its system, so it imports nothing of ours.

`program setup SETTINGS` makes the schema and ends; `program work SETTINGS` works until SIGTERM. SETTINGS is a JSON
object. The database is named by libpq's variables (PGHOST, PGPORT, PGUSER, PGDATABASE). When a worker takes jobs it
prints `ready`. Its handler does nothing; with BENCH_TIMED in the environment it prints `ran N T` instead: the number
in the job and the monotonic clock, which all processes of a machine share, in nanoseconds. After number 0, which is
not counted, it also prints `loop NAME`: the event loop that it runs on.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
import time
from collections.abc import Awaitable, Callable
from typing import Any

TIMED = bool(os.environ.get("BENCH_TIMED"))
Settings = dict[str, Any]


def ready() -> None:
    print("ready", flush=True)


def ran(number: object) -> None:
    """Say when the handler ran; the clock is read first."""
    if TIMED:
        now = time.monotonic_ns()
        print(f"ran {number} {now}", flush=True)
        if str(number) == "0":
            with contextlib.suppress(RuntimeError):  # a plain function in a process of its own
                print(f"loop {type(asyncio.get_running_loop()).__module__.split('.')[0]}", flush=True)


def on_stop(stop: Callable[[], object]) -> None:
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stop)


async def stopped() -> None:
    event = asyncio.Event()
    on_stop(event.set)
    await event.wait()


def main(setup: Callable[[Settings], Awaitable[None]], work: Callable[[Settings], Awaitable[None]]) -> None:
    settings = json.loads(sys.argv[2])
    factory = None
    if settings.pop("uvloop", False):
        import uvloop

        factory = uvloop.new_event_loop
    verb = {"setup": setup, "work": work}[sys.argv[1]]

    async def run() -> None:
        await verb(settings)

    with asyncio.Runner(loop_factory=factory) as runner:
        runner.run(run())
