"""
Memory stays bounded, whatever waits in the table and however large it is.

The counts are a tenth of those in the requirements, to be quick; MEMORY_TEST_SCALE=10 runs them in full
(with a longer timeout: `--timeout 600`).
"""

from __future__ import annotations

import os
import secrets
from typing import TYPE_CHECKING

from tests.acceptance.installation import EVENT, SCOPE, Installation
from tests.acceptance.servers import memory_kb
from tests.eventually import PATIENCE_S

if TYPE_CHECKING:
    from tests.processes import Outboxd

SCALE = float(os.environ.get("MEMORY_TEST_SCALE", "1"))
WAITING_ROWS = int(200_000 * SCALE)
LARGE_PAYLOADS = int(200 * SCALE)
MIDDLE_PAYLOADS = int(20_000 * SCALE)
DRAINED_S_MAX = PATIENCE_S * max(SCALE, 1.0)

IDLE_MB_MAX = 120
LARGE_MB_MAX = 200
SLOW = """\
@receiver("EVENT")
async def slow(message):
    await asyncio.sleep(0.002)
    assert len(message.payload["text"]) == SIZE


SIZE = {size}
"""


def peak_mb(daemon: Outboxd) -> float:
    peak = memory_kb(daemon.pid) / 1024
    print(f"peak memory {peak:.0f} MB")
    return peak


async def fill(installation: Installation, shards: str, due: str, rows: int) -> None:
    """Write rows fast; *shards* and *due* are expressions over the number n."""
    await installation.connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, scheduled_from, scheduled_for)"
        f" SELECT {SCOPE}, {shards}, {EVENT}, n, now(), {due} FROM generate_series(1, {rows}) AS n",
        timeout=600,
    )


async def fill_payloads(installation: Installation, count: int, size: int, *, shards: int, storage: str) -> None:
    """Write messages with a payload of *size* bytes; what is stored EXTERNAL is not compressed."""
    await installation.connection.execute(f"ALTER TABLE outbox ALTER payload SET STORAGE {storage}")
    text = "x" * size if storage == "EXTENDED" else secrets.token_hex(size // 2)
    await installation.connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, payload)"
        f" SELECT {SCOPE}, n % {shards}, {EVENT}, n, jsonb_build_object('text', $1::text)"
        f" FROM generate_series(1, {count}) AS n",
        text,
        timeout=600,
    )


async def test_what_waits_costs_no_memory(installation: Installation) -> None:
    """A third in backoff, in many shards; a third behind one pause, in one shard; a third behind many pauses."""
    third = WAITING_ROWS // 3
    await fill(installation, "1000 + n % 5000", "now() + interval '1 hour'", third)
    await fill(installation, "1", "'2016-08-01'", third)
    await fill(installation, "100000 + n % 500", "'2016-08-01'", third)
    await installation.connection.execute(
        "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, category, object_identifier, message_id)"
        f" SELECT 'main', {SCOPE}, (1000 + n)::text, {EVENT}, '1', n FROM generate_series(0, 4999) AS n;"
        "INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier)"
        f" SELECT 'shard', {SCOPE}, n::text FROM (SELECT 1 AS n UNION SELECT generate_series(100000, 100499)) AS s"
    )
    async with installation.ready_daemon() as daemon:
        for shard in range(10):
            ids = await installation.insert([-1 - shard], objects=range(20))
            await installation.until(lambda: set(ids) <= set(installation.delivered()), DRAINED_S_MAX, by=daemon)  # noqa: B023

        assert peak_mb(daemon) < IDLE_MB_MAX
    assert await installation.count() == 3 * third


async def test_large_payloads_are_held_one_a_drainer(installation: Installation) -> None:
    size = 1_000_000
    installation.receive(SLOW.format(size=size))
    await fill_payloads(installation, LARGE_PAYLOADS, size, shards=1, storage="EXTERNAL")
    async with installation.ready_daemon() as daemon:
        await installation.drained(DRAINED_S_MAX, by=daemon)
        assert peak_mb(daemon) < LARGE_MB_MAX


async def test_payloads_that_compress_well_are_measured_by_their_real_size(installation: Installation) -> None:
    """A megabyte of one letter takes 12 kB in the table."""
    size = 500_000
    installation.receive(SLOW.format(size=size))
    await fill_payloads(installation, 2 * LARGE_PAYLOADS, size, shards=10, storage="EXTENDED")
    async with installation.ready_daemon() as daemon:
        await installation.drained(DRAINED_S_MAX, by=daemon)
        assert peak_mb(daemon) < LARGE_MB_MAX


async def test_many_payloads_of_a_middling_size_are_not_read_all_at_once(installation: Installation) -> None:
    """Each is small enough to be read with its message, ahead of its delivery."""
    size = 7_000
    installation.receive(SLOW.format(size=size))
    await fill_payloads(installation, MIDDLE_PAYLOADS, size, shards=1_000, storage="EXTERNAL")
    installation.drain["concurrency"] = 50
    installation.configure()
    async with installation.ready_daemon() as daemon:
        await installation.drained(DRAINED_S_MAX, by=daemon)
        assert peak_mb(daemon) < LARGE_MB_MAX


async def test_a_deep_shard_is_read_in_parts(installation: Installation) -> None:
    installation.receive('@receiver("EVENT")\nasync def accept(message):\n    pass\n')
    await fill(installation, "1", "'2016-08-01'", MIDDLE_PAYLOADS)
    async with installation.ready_daemon() as daemon:
        await installation.drained(DRAINED_S_MAX, by=daemon)
        assert peak_mb(daemon) < IDLE_MB_MAX
