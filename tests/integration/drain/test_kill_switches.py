"""What is switched off stays: not delivered, not backed off, not lost, and goes out when the switch is lifted (I11)."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

import outboxd.pipeline
import outboxd.schedule
from outboxd.config import ScopeConfig
from tests.drains import (
    CONTROL,
    REGION,
    SCOPES,
    Gate,
    Recorder,
    configure,
    drain_once,
    draining,
    failing,
    failures,
    make_due,
    passes_more,
    remaining,
    until_empty,
    write,
    write_many,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd import Message
    from outboxd.config import Config

Switch = tuple[str, str]
"""A statement that switches shard 1, category MEMBER or the region outbox off, and one that lifts it."""


def option(key: str, value: list[Any]) -> Switch:
    text = json.dumps(value)
    return (
        f"INSERT INTO outboxd.option (key, value) VALUES ('{key}', '{text}')",
        f"DELETE FROM outboxd.option WHERE key = '{key}'",
    )


def pause(kind: str, **values: Any) -> Switch:
    columns = ", ".join(["kind", *values])
    places = ", ".join(repr(value) for value in [kind, *values.values()])
    return f"INSERT INTO outboxd.pause ({columns}) VALUES ({places})", "DELETE FROM outboxd.pause"


SWITCHES = {
    "option of a shard": option("outbox.disabled_shards.ORGANIZATION_SCOPE", [1]),
    "option of a shard, as text": option("outbox.disabled_shards.ORGANIZATION_SCOPE", ["1", "77"]),
    "option of a category": option("outbox.disabled_categories", ["MEMBER"]),
    "option of an outbox": option("outbox.disabled_outboxes", ["region"]),
    "pause of a shard": pause("shard", shard_scope=0, shard_identifier="1"),
    "pause of a category": pause("category", category=1),
    "pause of an outbox": pause("outbox", outbox="region"),
}
each_switch = pytest.mark.parametrize(("off", "on"), SWITCHES.values(), ids=SWITCHES)


@pytest.fixture(autouse=True)
def fresh_switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let a running pipeline see a switch after a moment."""
    monkeypatch.setattr(outboxd.pipeline, "REFRESH_INTERVAL_S", 0.05)


async def snapshot(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    return await connection.fetch("SELECT * FROM outbox ORDER BY id")


@each_switch
async def test_what_is_switched_off_is_neither_delivered_nor_touched_and_goes_out_when_it_is_lifted(
    database: str, connection: asyncpg.Connection, off: str, on: str
) -> None:
    for obj in range(3):
        await write(connection, shard=1, obj=obj)
    before = await snapshot(connection)
    seen = Recorder()
    await connection.execute(off)

    await drain_once(database, seen)

    assert seen.messages == []
    assert await snapshot(connection) == before
    assert await failures(connection) == []
    await connection.execute(on)
    await drain_once(database, seen)
    assert len(seen.messages) == 3
    assert await remaining(connection) == []


@each_switch
async def test_a_switch_that_has_expired_does_not_count(
    database: str, connection: asyncpg.Connection, off: str, on: str
) -> None:
    await write(connection)
    await connection.execute(off)
    await connection.execute(
        "UPDATE outboxd.option SET expires_at = now() - interval '1 second';"
        "UPDATE outboxd.pause SET expires_at = now() - interval '1 second'"
    )

    await drain_once(database, Recorder())

    assert await remaining(connection) == []


@each_switch
async def test_a_switch_that_has_not_expired_yet_counts(
    database: str, connection: asyncpg.Connection, off: str, on: str
) -> None:
    written = await write(connection)
    await connection.execute(off)
    await connection.execute(
        "UPDATE outboxd.option SET expires_at = now() + interval '1 hour';"
        "UPDATE outboxd.pause SET expires_at = now() + interval '1 hour'"
    )

    await drain_once(database, Recorder())

    assert await remaining(connection) == [written]


@each_switch
async def test_a_running_daemon_obeys_a_switch_and_its_end_without_a_restart(
    database: str, connection: asyncpg.Connection, off: str, on: str
) -> None:
    seen = Recorder()
    async with draining(database, seen) as pipeline:
        await write(connection, obj=1)
        await until_empty(connection)
        await connection.execute(off)
        await eventually(
            lambda: pipeline.live.switches.outboxes | pipeline.live.switches.categories | _shards(pipeline)
        )
        held = await write(connection, obj=2)
        await passes_more(pipeline)
        assert await remaining(connection) == [held]

        await connection.execute(on)
        await until_empty(connection)

    assert seen.objects == [1, 2]


def _shards(pipeline: Any) -> frozenset[Any]:
    return pipeline.live.switches.shards  # type: ignore[no-any-return]


@each_switch
async def test_a_delivery_does_not_start_once_its_switch_is_seen(
    database: str, connection: asyncpg.Connection, off: str, on: str
) -> None:
    gate = Gate()
    for obj in range(1, 4):
        await write(connection, obj=obj)
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        await connection.execute(off)
        await eventually(
            lambda: pipeline.live.switches.outboxes | pipeline.live.switches.categories | _shards(pipeline)
        )
        gate.opened.set()
        await eventually(lambda: pipeline.totals()["delivered"] == 1)
        await passes_more(pipeline)

    assert len(gate.messages) == 1
    assert len(await remaining(connection)) == 2


async def test_other_shards_are_delivered_while_one_is_off(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 5, shards=5)
    await connection.execute(SWITCHES["pause of a shard"][0])
    seen = Recorder()

    pipeline = await drain_once(database, seen)

    assert sorted(seen.shards) == [2, 3, 4, 5]
    assert pipeline.branches[0].bounded is not None
    assert len(pipeline.branches[0].bounded.skipped) == 1
    assert pipeline.branches[0].bounded.failed == set()


async def test_other_categories_of_a_shard_are_delivered_while_one_is_off(
    database: str, connection: asyncpg.Connection
) -> None:
    off = await write(connection, category="MEMBER")
    await write(connection, category="TEAM")
    await connection.execute(SWITCHES["pause of a category"][0])
    seen = Recorder()

    await drain_once(database, seen)

    assert [message.category_name for message in seen.messages] == ["TEAM"]
    assert await remaining(connection) == [off]


async def test_a_failure_does_not_move_messages_of_a_category_that_is_off(
    database: str, connection: asyncpg.Connection
) -> None:
    off = await write(connection, category="MEMBER")
    failed = await write(connection, category="TEAM")
    await connection.execute(SWITCHES["pause of a category"][0])

    await drain_once(database, Recorder(failing()))

    rows = await connection.fetch("SELECT id FROM outbox WHERE scheduled_for > now()")
    assert [row[0] for row in rows] == [failed]
    assert await remaining(connection) == [off, failed]


async def test_due_messages_of_a_category_that_is_off_do_not_wake_a_failing_shard(
    database: str, connection: asyncpg.Connection
) -> None:
    failed = await write(connection, category="TEAM")
    await drain_once(database, Recorder(failing()))
    await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 hour'")
    await connection.execute("UPDATE outboxd.failure SET last_failed_at = now() - interval '2 minutes'")
    waiting = await write(connection, category="MEMBER")
    off, on = SWITCHES["pause of a category"]
    await connection.execute(off)
    seen = Recorder()

    await drain_once(database, seen)
    ids_while_off = list(seen.ids)
    await connection.execute(on)
    await drain_once(database, seen)

    assert ids_while_off == []
    assert seen.ids == [failed, waiting]


async def test_what_has_failed_is_tried_again_beside_due_messages_of_a_category_that_is_off(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxd.schedule, "REST_S_MAX", 0.1)
    failed = await write(connection, category="TEAM")
    await drain_once(database, Recorder(failing()))
    await connection.execute("UPDATE outboxd.failure SET last_failed_at = now() - interval '2 minutes'")
    await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 hour'")
    off = await write(connection, category="MEMBER")
    await connection.execute(SWITCHES["pause of a category"][0])
    seen = Recorder()

    async with draining(database, seen) as pipeline:
        await eventually(lambda: pipeline.totals()["claimed"] >= 2)  # what is off leads there, and changes nothing
        held_back = list(seen.ids)
        await connection.execute("UPDATE outbox SET scheduled_for = now() WHERE id = $1", failed)
        await eventually(lambda: seen.ids)

    assert held_back == []
    assert seen.ids == [failed]
    assert await remaining(connection) == [off]


async def test_what_fails_slowly_is_tried_again_at_its_time_while_another_category_is_off(
    database: str, connection: asyncpg.Connection
) -> None:
    """A pass finds the shard while its receiver works. Afterwards nothing of it is due, but nothing is off, either."""
    await connection.execute(SWITCHES["pause of a category"][0])
    tries: list[int] = []

    async def fail_once(message: Message) -> None:
        tries.append(message.attempt)
        if message.attempt == 1:
            scheduler = pipeline.branches[0].scheduler
            assert scheduler is not None
            await eventually(lambda: any(claim.again for claim in scheduler._held.values()))
            raise ValueError("not yet")

    async with draining(database, Recorder(fail_once), configure(poll_interval_s=0.1)) as pipeline:
        await write(connection, category="TEAM")
        await until_empty(connection)

    assert tries == [1, 2]


async def test_a_deep_backlog_of_a_category_that_is_off_does_not_hide_the_others(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 60)
    last = await write(connection, category="TEAM")
    await connection.execute(SWITCHES["pause of a category"][0])
    seen = Recorder()

    await drain_once(database, seen, configure(turn_rows_max=10))

    assert seen.ids == [last]


async def test_a_shard_in_backoff_that_is_switched_off_keeps_its_failure_and_its_schedule(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    await drain_once(database, Recorder(failing()))
    await make_due(connection)
    off, on = SWITCHES["pause of a shard"]
    await connection.execute(off)
    before = await snapshot(connection), await failures(connection)

    await drain_once(database, Recorder())

    assert (await snapshot(connection), await failures(connection)) == before
    await connection.execute(on)
    seen = Recorder()
    await drain_once(database, seen)
    assert [message.attempt for message in seen.messages] == [2]


async def test_two_pauses_of_one_shard_are_lifted_one_by_one(database: str, connection: asyncpg.Connection) -> None:
    off, _ = SWITCHES["pause of a shard"]
    await connection.execute(off)
    await connection.execute(off)
    await write(connection)
    seen = Recorder()

    await connection.execute("DELETE FROM outboxd.pause WHERE id = (SELECT min(id) FROM outboxd.pause)")
    await drain_once(database, seen)
    assert seen.messages == []

    await connection.execute("DELETE FROM outboxd.pause")
    await drain_once(database, seen)
    assert len(seen.messages) == 1


async def test_a_scope_s_own_option_switches_its_shards_off(database: str, connection: asyncpg.Connection) -> None:
    scopes = {**SCOPES, "USER_SCOPE": ScopeConfig(value=1, disabled_shards_option="auth.disabled_users")}
    config: Config = msgspec.structs.replace(configure(), scopes=scopes)
    off = await write(connection, scope=1, category="PROFILE")
    await write(connection, scope=0)
    await connection.execute(option("auth.disabled_users", [1])[0])
    seen = Recorder()

    await drain_once(database, seen, config)

    assert [message.scope_name for message in seen.messages] == ["ORGANIZATION_SCOPE"]
    assert await remaining(connection) == [off]


@pytest.mark.parametrize(("region", "delivered"), [("eu", ["us"]), (None, [])])
async def test_a_pause_covers_one_region_or_all_of_them(
    database: str, connection: asyncpg.Connection, region: str | None, delivered: list[str]
) -> None:
    for name in ("eu", "us"):
        await write(connection, table="control_outbox", region=name)
    values = {"shard_scope": 0, "shard_identifier": "1", **({"region_name": region} if region else {})}
    await connection.execute(pause("shard", **values)[0])
    seen = Recorder()

    await drain_once(database, seen, configure(CONTROL))

    assert [message.region_name for message in seen.messages] == delivered


async def test_a_pause_of_one_outbox_leaves_the_others_alone(database: str, connection: asyncpg.Connection) -> None:
    written = await write(connection)
    await write(connection, table="control_outbox", region="eu")
    await connection.execute(SWITCHES["pause of an outbox"][0])

    await drain_once(database, Recorder(), configure(REGION, CONTROL))

    assert await remaining(connection) == [written]
    assert await remaining(connection, "control_outbox") == []


@pytest.mark.parametrize("value", ['"1"', "1", "null", "{}", '[null, {"a": 1}, [1]]', "[1e400]", "true"])
async def test_an_option_that_makes_no_sense_switches_nothing_off_and_stops_nothing(
    database: str, connection: asyncpg.Connection, value: str
) -> None:
    await write(connection)
    for key in ("outbox.disabled_shards.ORGANIZATION_SCOPE", "outbox.disabled_categories", "outbox.disabled_outboxes"):
        await connection.execute("INSERT INTO outboxd.option (key, value) VALUES ($1, $2)", key, value)

    await drain_once(database, Recorder())

    assert await remaining(connection) == []


async def test_many_shards_that_are_off_do_not_keep_a_bounded_run_from_ending(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 1_500, shards=1_500)
    off = option("outbox.disabled_shards.ORGANIZATION_SCOPE", list(range(1, 1_500)))[0]
    await connection.execute(off)
    seen = Recorder()

    pipeline = await drain_once(database, seen)

    assert seen.shards == [1_500]
    assert pipeline.branches[0].bounded is not None
    assert len(pipeline.branches[0].bounded.skipped) == 1_499


async def test_shards_behind_the_switch_of_a_category_are_not_claimed_in_every_pass(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 40, shards=40)
    await connection.execute(SWITCHES["pause of a category"][0])
    seen = Recorder()

    async with draining(database, {"MEMBER": seen, "TEAM": seen}) as pipeline:
        [branch] = pipeline.branches
        await eventually(lambda: branch.claimed.claimed == 40)
        await passes_more(pipeline)
        assert branch.claimed.claimed == 40
        await write(connection, shard=7, category="TEAM")
        await eventually(lambda: len(seen.messages) == 1)
        assert seen.shards == [7]
        await connection.execute(SWITCHES["pause of a category"][1])
        await until_empty(connection)


async def test_a_shard_that_was_drained_to_its_end_is_not_taken_for_one_that_is_off(
    database: str, connection: asyncpg.Connection
) -> None:
    """Its last turn read as many messages as a turn may, so one more look finds none."""
    await write_many(connection, 20, shards=1)
    await connection.execute("INSERT INTO outboxd.pause (kind, category) VALUES ('category', 3)")

    pipeline = await drain_once(database, Recorder(), configure(turn_rows_max=10))

    assert pipeline.totals()["retired"] == 20
    assert pipeline.branches[0].bounded is not None
    assert pipeline.branches[0].bounded.skipped == set()
