"""Resident memory of a daemon, `python -m outboxd` at its defaults, beside millions of waiting rows."""

from __future__ import annotations

import asyncio
import os
import socket
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from bench import stage
from bench.errors import FailedError
from bench.figures import Series, Table
from outboxd import registry

if TYPE_CHECKING:
    from bench.options import Options

CONFIG = """
[http]
listen = "127.0.0.1:{port}"
[receivers]
modules = ["bench.memory"]
[[outbox]]
name = "drained"
table = "outbox_drained"
silo = "region"
[scopes.ACCOUNT]
value = 0
[categories.ACCOUNT_UPDATE]
value = 1
scope = "ACCOUNT"
"""
FILL = """
INSERT INTO outbox_drained (shard_scope, shard_identifier, category, object_identifier, payload)
SELECT 0, i / 10, 1, i, jsonb_build_object('name', md5(i::text), 'changed', i)
FROM generate_series({start}, {end} - 1) AS i
"""
CHUNK = 500_000
WATCH_S = 20.0
READY_S_MAX = 30.0


@registry.receiver("ACCOUNT_UPDATE")
async def dawdle(message: object) -> None:
    """Take a while: what is read ahead waits behind the drainers."""
    await asyncio.sleep(0.02)


async def measure(options: Options) -> list[Table]:
    """Look at the peak of a daemon that finds as many due rows as it can, and delivers few."""
    rows = options.scaled(10_000_000)
    table = Table(
        "Memory",
        f"`python -m outboxd`, {WATCH_S:.0f} s beside {rows:,} due rows with a payload of 60 bytes in {rows // 10:,}"
        " shards; receivers take 20 ms.",
        [Series("resident memory, idle, MB", 1), Series("peak of resident memory, MB", 1, at_most=100)],
    )
    async with stage.server() as (dsn, connection):
        idle_mb = [await _peak_mb(dsn, 2.0) for _ in range(options.rounds)]
        for start in range(0, rows, CHUNK):
            options.say(f"memory: {start:,} rows written")
            await connection.execute(FILL.format(start=start, end=min(rows, start + CHUNK)))
        await connection.execute("ANALYZE outbox_drained")
        for idle in idle_mb:
            table.add(idle, await _peak_mb(dsn, WATCH_S))
            options.say(f"memory: {table.series[1].values[-1]:.1f} MB")
    return [table]


async def _peak_mb(dsn: str, seconds: float) -> float:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "outboxd.toml"
        config.write_text(CONFIG.format(port=port))
        environment = {**os.environ, "OUTBOX_DSN": dsn}
        pipe = asyncio.subprocess.PIPE
        async with stage.program("outboxd", "--config", config, environment=environment, stderr=pipe) as process:
            await _ready(process)
            # What it says later is read, so that it never waits for somebody who reads it.
            said = asyncio.create_task(process.communicate())
            await asyncio.sleep(seconds)
            peak_mb = _peak_of(process.pid)
            process.terminate()
            await said
    return peak_mb


async def _ready(process: asyncio.subprocess.Process) -> None:
    assert process.stderr is not None
    async with asyncio.timeout(READY_S_MAX):
        while b"daemon.ready" not in (line := await process.stderr.readline()):
            if not line:
                raise FailedError("the daemon did not start")


def _peak_of(pid: int) -> float:
    """Return what the kernel has seen, and not what is there whenever somebody looks."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(1_024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 1e6
