"""Switching off and on while a daemon runs: in effect within seconds, nothing lost, nothing forgotten."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.installation import EVENT, UPDATE, Installation
from tests.eventually import eventually

if TYPE_CHECKING:
    from tests.processes import Outboxd

SHARD = ("--scope", "ACCOUNT", "--shard", "42")
OPTION = "outbox.disabled_shards.ACCOUNT"

FAIL_AT_FIRST = """\
@receiver("UPDATE", "EVENT")
async def accept(message):
    if message.shard_identifier == 42 and not is_open("mended"):
        record(message, "failed")
        raise RetryLater(3600, "their endpoint is down")
    record(message)
"""
HURRIED = """\
import outboxd.main
import outboxd.pipeline

outboxd.main.SUMMARY_INTERVAL_S = 0.2
outboxd.pipeline.REFRESH_INTERVAL_S = 0.1


@receiver("UPDATE", "EVENT")
async def accept(message):
    record(message)
"""


async def content(installation: Installation) -> list[Any]:
    rows = await installation.connection.fetch("SELECT * FROM outbox ORDER BY id")
    failures = await installation.connection.fetch("SELECT * FROM outboxd.failure")
    return [*rows, *failures]


async def switches_were_read(installation: Installation) -> None:
    """Wait until the daemon has read the switches again and obeys: when it reads them a second time, it does."""
    started = "SELECT query_start FROM pg_stat_activity WHERE application_name = 'outboxd: options'"
    for _ in range(2):
        now = await installation.connection.fetchval("SELECT clock_timestamp()")

        async def was_read(now: Any = now) -> bool:
            return bool(await installation.connection.fetchval(started) > now)

        await eventually(was_read)


async def passes_by(installation: Installation, daemon: Outboxd) -> None:
    """Let the daemon deliver a message of another shard, which it finds in a pass over all that is due."""
    [marker] = await installation.insert([7], category=EVENT)

    async def is_gone() -> bool:
        return marker not in await installation.ids()

    await installation.until(is_gone, by=daemon)


@pytest.mark.parametrize(
    "arguments", [SHARD, ("--category", "UPDATE"), ("--outbox", "main")], ids=["shard", "category", "outbox"]
)
async def test_a_pause_is_in_effect_within_seconds_and_what_it_holds_goes_out_when_it_is_resumed(
    installation: Installation, arguments: tuple[str, ...]
) -> None:
    async with installation.ready_daemon() as daemon:
        await installation.run("pause", *arguments, "--reason", "bad deploy")
        await daemon.wait_for_event("options.switched")
        held = await installation.insert([42], category=UPDATE, objects=range(1, 6))
        before = await content(installation)
        if arguments != ("--outbox", "main"):
            await passes_by(installation, daemon)
        await switches_were_read(installation)
        assert await content(installation) == before

        resumed_at = time.monotonic()
        done = await installation.run("resume", *arguments)
        await installation.drained(by=daemon)

    assert done.returncode == 0
    deliveries = [line for line in installation.deliveries() if line["id"] in held]
    assert sorted(line["id"] for line in deliveries) == sorted(held)
    assert {line["attempt"] for line in deliveries} == {1}
    assert min(line["at"] for line in deliveries) > resumed_at
    assert daemon.events("shard.rescheduled") == []


async def test_a_shard_in_backoff_keeps_its_time_unless_it_is_resumed_now(installation: Installation) -> None:
    installation.receive(FAIL_AT_FIRST)
    async with installation.ready_daemon() as daemon:
        [message] = await installation.insert([42])
        await daemon.wait_for_event("shard.rescheduled")
        installation.open("mended")
        await installation.run("pause", *SHARD)
        await daemon.wait_for_event("options.switched")
        before = await content(installation)

        await installation.run("resume", *SHARD)
        await daemon.wait_for_event("options.switched", count=2)
        await passes_by(installation, daemon)
        assert await content(installation) == before

        await installation.run("pause", *SHARD)
        done = await installation.run("resume", *SHARD, "--now")
        await installation.drained(by=daemon)

    assert "made due: 1 message in 1 shard that had failed" in done.stdout
    assert [line["attempt"] for line in installation.deliveries() if line["id"] == message] == [2]
    assert len(installation.deliveries("failed")) == 1


async def test_a_pause_that_has_expired_stops_counting_by_itself(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        await installation.run("pause", *SHARD, "--expires", "4s")
        await daemon.wait_for_event("options.switched")
        await installation.insert([42])

        await installation.drained(by=daemon)

    assert [event["shards"] for event in daemon.events("options.switched")] == [1, 0]
    assert await installation.count("SELECT count(*) FROM outboxd.pause") == 1


async def test_pauses_and_options_add_up_and_each_is_ended_by_itself(installation: Installation) -> None:
    installation.receive(HURRIED)
    async with installation.ready_daemon() as daemon:
        await installation.run("pause", *SHARD)
        await daemon.wait_for_event("options.switched")
        await installation.insert([42])
        before = await content(installation)
        for command in (
            ("pause", *SHARD, "--author", "bob"),
            ("resume", "1"),
            ("options", "set", OPTION, "[42]"),
            ("resume", *SHARD),
        ):
            await installation.run(*command)
            await switches_were_read(installation)
            await passes_by(installation, daemon)
            assert await content(installation) == before, command

        await installation.run("options", "unset", OPTION)
        await installation.drained(by=daemon)

    assert await installation.count("SELECT count(*) FROM outboxd.pause") == 0


async def test_a_daemon_says_every_minute_what_is_switched_off(installation: Installation) -> None:
    installation.receive(HURRIED)
    async with installation.ready_daemon() as daemon:
        await daemon.wait_for_event("drain.summary", count=2)
        assert daemon.events("drain.switched_off") == []
        await installation.run("pause", "--category", "UPDATE")
        await installation.run("pause", "--backfill-all")
        await installation.run("options", "set", OPTION, json.dumps(list(range(1, 10))))

        def all_is_named() -> bool:
            named = daemon.events("drain.switched_off")
            return bool(named) and named[-1]["shards"] == 9

        await installation.until(all_is_named, by=daemon)
        event = daemon.events("drain.switched_off")[-1]
        said = len(daemon.events("drain.switched_off"))
        await daemon.wait_for_event("drain.switched_off", count=said + 2)

        await installation.run("resume", "--all", "--yes")
        await installation.run("options", "unset", OPTION)
        await switches_were_read(installation)
        said = len(daemon.events("drain.switched_off"))
        await daemon.wait_for_event("drain.summary", count=len(daemon.events("drain.summary")) + 3)

    assert len(daemon.events("drain.switched_off")) <= said + 1  # one may have been on its way
    assert (event["outboxes"], event["categories"], event["backfills"]) == ([], ["UPDATE"], ["every table"])
    assert event["first_shards"] == [f"ACCOUNT {number}" for number in range(1, 6)]


async def test_the_summary_of_a_single_run_names_what_is_switched_off(installation: Installation) -> None:
    await installation.insert([42, 43])
    await installation.run("options", "set", OPTION, "[42]")
    await installation.run("pause", "--category", "UPDATE")

    said = await installation.run("--once")
    silent = await installation.run("--once", "--quiet")
    keys = await installation.once()

    assert said.stdout.splitlines()[1:] == [
        "shards: 0 failed, 1 switched off, 1 still due",
        "switched off: category UPDATE; shard ACCOUNT 42",
    ]
    assert silent.stdout == ""
    assert keys["skipped_shards"] == 1
    assert len(keys) == 8
