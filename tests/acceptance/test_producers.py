"""Applications of their own that write and flush beside a daemon: real processes, real kills, a real pooler."""

from __future__ import annotations

import asyncio
import contextlib
import os
import re
import sys
from collections import Counter
from typing import TYPE_CHECKING

import pytest

from tests.acceptance.servers import PGBOUNCER, pgbouncer
from tests.eventually import PATIENCE_S
from tests.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    from tests.acceptance.installation import Installation

APPLICATION = """\
import asyncio
import logging
import sys

import asyncpg

from outboxd import OutboxFlushError, outbox_context
from prometheus_client import generate_latest

logging.basicConfig(stream=sys.stderr, format="%(name)s %(message)s")


async def work(number, dsn, count, shards):
    connection = await asyncpg.connect(dsn, statement_cache_size=0)
    for turn in range(count):
        try:
            async with outbox_context(connection, flush=True) as outbox:
                object_identifier = 1000 * number + turn
                await outbox.save("EVENT", shard_identifier=turn % shards, object_identifier=object_identifier)
        except OutboxFlushError as exc:
            print("flush:", exc)
    await connection.close()


async def main(first, dsn, count, shards):
    await asyncio.gather(*(work(number, dsn, count, shards) for number in (first, first + 1)))
    print(generate_latest().decode() if count else "")
    print("done")


asyncio.run(main(int(sys.argv[1]), sys.argv[2], int(sys.argv[3]), int(sys.argv[4])))
"""
RECORD_TOGETHER = """\
@receiver("EVENT")
async def accept(message):
    record(message, "start")
    await asyncio.sleep(0.002)
    record(message)
"""
KILLS_FLUSHERS = """\
@receiver("EVENT")
async def accept(message):
    if os.environ.get("IS_APPLICATION"):
        os.kill(os.getpid(), 9)
    record(message)
"""
ONE_BY_ONE, SHARDS = 40, 3


@contextlib.asynccontextmanager
async def application(
    installation: Installation, first: int, *, dsn: str = "", count: int = ONE_BY_ONE
) -> AsyncIterator[asyncio.subprocess.Process]:
    file = installation.folder / "application.py"
    file.write_text(APPLICATION)
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, str(file), str(first), dsn or installation.dsn, str(count), str(SHARDS)),
        cwd=installation.folder,
        env={**os.environ, "PYTHONPATH": str(ROOT), "IS_APPLICATION": "1"},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    try:
        yield process
    finally:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def ended(process: asyncio.subprocess.Process) -> str:
    async with asyncio.timeout(PATIENCE_S):
        output, error = await process.communicate()
    assert process.returncode == 0, error.decode()
    assert "Traceback" not in error.decode()
    return output.decode()


def overlapping(installation: Installation) -> int:
    """How often a delivery began in a shard while another was under way there."""
    at_work: Counter[int] = Counter()
    found = 0
    for line in installation.lines():
        at_work[line["shard"]] += 1 if line["what"] == "start" else -1
        found += line["what"] == "start" and at_work[line["shard"]] > 1
    return found


async def test_two_applications_and_a_daemon_deliver_each_message_once(installation: Installation) -> None:
    installation.receive(RECORD_TOGETHER)
    async with (
        installation.ready_daemon() as daemon,
        application(installation, 1) as one,
        application(installation, 3) as other,
    ):
        printed = await asyncio.gather(ended(one), ended(other))
        await installation.drained(by=daemon)

    assert [text.splitlines()[-1] for text in printed] == ["done", "done"]
    assert "flush:" not in printed[0] + printed[1]
    objects = Counter(line["object"] for line in installation.lines() if line["what"] == "done")
    assert set(objects) == {1000 * number + turn for number in range(1, 5) for turn in range(ONE_BY_ONE)}
    assert set(objects.values()) == {1}
    assert overlapping(installation) == 0
    assert f'outbox_saved_total{{category="EVENT",outbox="main"}} {2 * ONE_BY_ONE}.0' in printed[0]
    counted = dict(
        re.findall(r'^(\w+)\{category="EVENT",outbox="main",synchronous="true"\} (\S+)', printed[0], re.MULTILINE)
    )
    assert float(counted["outbox_processed_total"]) > 0
    for family in ("processing_lag", "coalesced_net_queue_time", "coalesced_net_processing_time"):
        assert counted[f"outbox_{family}_seconds_count"] == counted["outbox_processed_total"]
    assert float(counted["outbox_coalesced_net_processing_time_seconds_sum"]) > 0.002


async def test_an_application_that_is_killed_in_a_flush_loses_nothing_and_is_no_daemon_s_death(
    installation: Installation,
) -> None:
    installation.receive(KILLS_FLUSHERS)
    async with application(installation, 1, count=1) as process:
        await process.wait()
    assert process.returncode == -9
    assert len(await installation.ids()) > 0

    async with installation.ready_daemon() as daemon:
        await installation.drained(by=daemon)

    assert daemon.events("worker.died") == []


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer")
@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
async def test_through_a_pooler_a_flush_wakes_the_daemon(
    installation: Installation, server_folder: Path, lenient: bool
) -> None:
    installation.drain = {"poll_interval_s": 600.0}
    installation.configure()
    installation.receive(RECORD_TOGETHER)
    async with (
        pgbouncer(server_folder, installation.dsn, lenient=lenient) as through,
        installation.ready_daemon(env={"OUTBOX_DSN": installation.dsn}) as daemon,
    ):
        installation.configure(dsn=through)
        async with application(installation, 1, dsn=through, count=2) as process:
            printed = await ended(process)
        await installation.drained(by=daemon)

    assert "flush:" not in printed
    assert {line["pid"] for line in installation.lines()} == {daemon.pid}
