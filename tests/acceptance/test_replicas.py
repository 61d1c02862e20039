"""Several daemons on one database."""

from __future__ import annotations

import signal
from collections import Counter, defaultdict
from itertools import pairwise
from typing import Any

import pytest

from tests.acceptance.installation import EVENT, OUTBOX, UPDATE, Installation
from tests.eventually import eventually

WORK = """\
@receiver("EVENT", "UPDATE")
async def work(message):
    record(message, "start")
    await asyncio.sleep(message.id % 5 / 1000)
    record(message)
"""
SHARDS = range(200)


def overlaps(starts: list[dict[str, Any]], ends: list[dict[str, Any]]) -> list[str]:
    """Deliveries of one shard that began before the one before them had ended."""
    spans = defaultdict(list)
    end_of = {(line["id"], line["pid"], line["attempt"]): line["at"] for line in ends}
    for line in starts:
        end = end_of[line["id"], line["pid"], line["attempt"]]
        spans[line["shard"]].append((line["at"], end, line["pid"]))
    found = []
    for shard, of_shard in spans.items():
        of_shard.sort()
        for one, next_one in pairwise(of_shard):
            if next_one[0] < one[1]:
                found.append(f"shard {shard}: {one} and {next_one}")
    return found


@pytest.mark.parametrize("category", [EVENT, UPDATE], ids=["one by one", "coalesced"])
async def test_two_daemons_never_deliver_one_shard_at_once_and_lose_nothing(
    installation: Installation, category: int
) -> None:
    installation.receive(WORK)
    ids: list[int] = []
    async with installation.ready_daemon() as one, installation.ready_daemon() as two:
        for round_ in range(8):
            ids += await installation.insert(SHARDS, category=category, objects=[round_ % 2, 7])
            quarter = len(ids) // 4
            await eventually(lambda: len(installation.delivered()) > quarter)  # noqa: B023
        await installation.drained(by=one)
        for daemon in (one, two):
            daemon.signal(signal.SIGTERM)
            assert await daemon.wait() == 0

    done = installation.deliveries()
    assert {line["pid"] for line in done} == {one.pid, two.pid}
    assert overlaps(installation.deliveries("start"), done) == []
    assert sum(line["coalesced"] for line in done) == len(ids)
    assert max(Counter(installation.delivered()).values()) == 1
    if category == EVENT:
        assert Counter(installation.delivered()) == Counter(ids)
    assert await installation.left_behind() == []


async def test_when_one_daemon_is_killed_the_other_one_delivers_its_shards(installation: Installation) -> None:
    installation.receive(WORK)
    async with installation.ready_daemon() as one, installation.ready_daemon() as two:
        ids = await installation.insert(SHARDS, objects=range(5))
        await eventually(lambda: {one.pid, two.pid} == {line["pid"] for line in installation.deliveries()})
        one.signal(signal.SIGKILL)
        await one.wait()
        await installation.drained(by=two)

    assert set(installation.delivered()) == set(ids)


@pytest.mark.parametrize(
    ("arguments", "outbox"),
    [
        ([], OUTBOX.replace('"outbox"', '"other"')),
        ([], OUTBOX.replace('"main"', '"renamed"')),
        ([], OUTBOX + 'sharding_columns = ["shard_identifier", "shard_scope"]\n'),
        ([], OUTBOX + '[[outbox]]\nname = "second"\ntable = "second"\n'),
        (["--once"], OUTBOX + 'sharding_columns = ["shard_identifier", "shard_scope"]\n'),
    ],
    ids=["table", "name", "sharding columns", "one more", "once"],
)
async def test_a_daemon_unlike_a_living_one_exits_78_and_names_it(
    installation: Installation, arguments: list[str], outbox: str
) -> None:
    async with installation.ready_daemon() as living:
        ids = await installation.insert([1])
        await installation.drained(by=living)
        installation.outbox = outbox
        installation.configure()

        process = await installation.run(*arguments)

        assert process.returncode == 78, process.stderr
        assert str(living.pid) in process.stderr
        assert "Traceback" not in process.stderr
        rows = await installation.connection.fetch("SELECT pid FROM outboxd.worker")
        assert [row["pid"] for row in rows] == [living.pid]
        assert installation.delivered() == ids


async def test_a_daemon_unlike_a_dead_one_starts(installation: Installation) -> None:
    async with installation.ready_daemon() as first:
        first.signal(signal.SIGKILL)
        await first.wait()
    installation.outbox = OUTBOX.replace('"main"', '"renamed"')
    installation.configure()

    async with installation.ready_daemon() as second:
        await installation.insert([1])
        await installation.drained(by=second)
