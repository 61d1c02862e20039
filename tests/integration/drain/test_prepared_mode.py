"""After a death each delivery is counted before it starts: a deadly message has pushed itself back (I9)."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

import outboxd.claims
from outboxd.errors import Discard, RetryLater
from tests.drains import (
    DEAD,
    Gate,
    Recorder,
    configure,
    connected,
    drain_once,
    draining,
    failing,
    failures,
    make_due,
    remaining,
    write,
    write_many,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message
    from outboxd.pipeline import Pipeline


@pytest.fixture(autouse=True)
async def died(connection: asyncpg.Connection) -> None:
    await connection.execute(DEAD)


async def schedules(connection: asyncpg.Connection) -> list[float]:
    """Seconds from scheduled_from to scheduled_for of what is not due, in order of id."""
    rows = await connection.fetch(
        "SELECT scheduled_for - scheduled_from FROM outbox WHERE scheduled_for > now() ORDER BY id"
    )
    return [row[0].total_seconds() for row in rows]


async def test_the_death_of_a_daemon_is_marked_by_whoever_finds_it(
    database: str, connection: asyncpg.Connection
) -> None:
    await drain_once(database, Recorder())

    assert await connection.fetchval("SELECT count(*) FROM outboxd.worker WHERE died_at IS NOT NULL") == 1


async def test_a_delivery_is_counted_before_it_starts(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, obj=1)
    await write(connection, obj=2)
    seen: list[tuple[int, str, list[float]]] = []

    async def look(_message: Message) -> None:
        async with connected(database) as other:
            [failure] = await failures(other)
            seen.append((failure["attempts"], failure["last_error"], await schedules(other)))

    await drain_once(database, Recorder(look))

    assert len(seen) == 2
    for attempts, error, waits in seen:
        assert attempts == 1
        assert "died" in error
        assert waits == [2.0]


async def test_a_success_deletes_and_leaves_the_rest_of_the_shard_alone(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (1, 2, 1, 3):
        await write(connection, obj=obj)
    others = "SELECT * FROM outbox WHERE object_identifier <> $1 ORDER BY id"
    before: dict[Any, list[asyncpg.Record]] = {obj: await connection.fetch(others, obj) for obj in (1, 2, 3)}

    async def look(message: Message) -> None:
        obj = message.object_identifier
        async with connected(database) as other:
            assert await other.fetch(others, obj) == [row for row in before[obj] if row["object_identifier"] > obj]

    seen = Recorder(look)

    pipeline = await drain_once(database, seen)

    assert seen.objects == [1, 2, 3]
    assert [(message.attempt, message.coalesced) for message in seen.messages] == [(1, 2), (1, 1), (1, 1)]
    assert await remaining(connection) == []
    assert await failures(connection) == []
    assert (pipeline.totals()["delivered"], pipeline.totals()["retired"]) == (3, 4)


async def test_a_delivery_costs_the_same_however_deep_its_shard(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 300)

    pipeline = await drain_once(database, Recorder())

    async def counted() -> bool:
        row = await connection.fetchrow("SELECT n_tup_upd, n_tup_del FROM pg_stat_user_tables WHERE relname = 'outbox'")
        assert row is not None
        assert tuple(row) == (300, 300)
        return True

    await eventually(counted)
    scheduler = pipeline.branches[0].scheduler
    assert scheduler is not None
    assert scheduler.counters.claimed < 10  # its turns are as long as any


async def test_the_rest_of_a_shard_is_due_when_a_daemon_stops_after_a_delivery(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (1, 2, 3):
        await write(connection, obj=obj)
    gate = Gate()
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        pipeline.stop()
        gate.opened.set()

    assert len(gate.messages) == 1
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE scheduled_for <= now()") == 2
    assert await failures(connection) == []


@pytest.mark.parametrize("prepared", [False, True])
async def test_a_failure_leaves_a_shard_as_one_without_a_death_does(
    database: str, connection: asyncpg.Connection, prepared: bool
) -> None:
    if not prepared:
        await connection.execute("DELETE FROM outboxd.worker")
    await write(connection, obj=1)
    ahead = await write(connection, obj=2, due_in_s=3600)
    beyond = await write(connection, obj=3, due_in_s=3600)
    one = "SELECT * FROM outbox WHERE id = $1"
    before = await connection.fetchrow(one, beyond)
    gate = Gate()

    async def fail(message: Message) -> None:
        await gate(message)
        raise ValueError

    async with draining(database, Recorder(fail), configure(backoff_rows_max=2)):
        await gate.closed_behind()
        assert await connection.fetchval(
            "SELECT scheduled_for > now() + interval '3500 s' FROM outbox WHERE id = $1", ahead
        )
        began_at = await connection.fetchval("SELECT clock_timestamp()")
        gate.opened.set()

        async def is_written() -> bool:
            [failure] = await failures(connection)
            return "died" not in failure["last_error"]

        await eventually(is_written if prepared else lambda: failures(connection))

    moved = await connection.fetch("SELECT scheduled_from, scheduled_for FROM outbox ORDER BY id LIMIT 2")
    assert moved[0] == moved[1]
    assert moved[0]["scheduled_from"] >= began_at  # the delay begins when the receiver has raised
    assert await schedules(connection) == [2.0, 2.0, 3600.0]
    assert await connection.fetchrow(one, beyond) == before


async def test_a_failure_keeps_the_delay_that_was_counted_ahead_and_is_not_counted_twice(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    await write(connection, obj=2)

    pipeline = await drain_once(database, Recorder(failing(error=ValueError("its own words"))))

    [failure] = await failures(connection)
    assert (failure["attempts"], failure["object_identifier"]) == (1, "1")
    assert "its own words" in failure["last_error"]
    assert await schedules(connection) == [2.0, 2.0]
    assert pipeline.totals()["failures"] == 1


async def test_repeated_failures_grow_as_they_do_without_a_death(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)
    waits = []
    for _ in range(4):
        await drain_once(database, Recorder(failing()))
        waits += await schedules(connection)
        await make_due(connection)

    assert waits == [2.0, 4.0, 8.0, 16.0]
    assert [failure["attempts"] for failure in await failures(connection)] == [4]


async def test_a_message_that_kills_the_process_has_pushed_itself_back(
    database: str, connection: asyncpg.Connection
) -> None:
    deadly = await write(connection, shard=1)
    await write(connection, shard=2)
    gate = Gate()

    async def kill(message: Message) -> None:
        if message.shard_identifier == 1:
            await gate(message)

    async with draining(database, Recorder(kill)) as pipeline:
        await gate.closed_behind()
        await eventually(lambda: pipeline.totals()["delivered"] == 1)
        die(pipeline)

    seen = Recorder()
    await drain_once(database, seen)
    assert 1 not in seen.shards
    assert await remaining(connection) == [deadly]
    assert await schedules(connection) == [2.0]
    [failure] = await failures(connection)
    assert (failure["attempts"], "died" in failure["last_error"]) == (1, True)


def die(pipeline: Pipeline) -> None:
    """End the delivery under way as a death would: nothing is settled any more."""
    settler = pipeline.branches[0].settler
    assert settler is not None
    settler.add = lambda _ending: None  # type: ignore[method-assign,assignment]
    pipeline.stop_hard()


async def kill_on(database: str, obj: int) -> list[int]:
    """Drain until the delivery of an object ends in a death; return the objects that were tried."""
    gate = Gate()

    async def kill(message: Message) -> None:
        if message.object_identifier == obj:
            await gate(message)

    seen = Recorder(kill)
    async with draining(database, seen) as pipeline:
        await gate.closed_behind()
        die(pipeline)
    return seen.objects


async def test_the_shard_of_a_message_that_kills_backs_off_although_the_rest_of_it_is_due(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    deadly = await write(connection, obj=666)
    behind = [await write(connection, obj=obj) for obj in (2, 3)]
    waits: list[float] = []
    tried: list[list[int]] = []
    for _ in range(4):
        tried.append(await kill_on(database, 666))
        waits += await schedules(connection)
        await drain_once(database, held := Recorder())
        assert held.messages == []
        await make_due(connection)

    assert waits == [2.0, 4.0, 8.0, 16.0]
    assert tried == [[1, 666], [666], [666], [666]]
    assert [failure["attempts"] for failure in await failures(connection)] == [4]
    assert await remaining(connection) == [deadly, *behind]

    await drain_once(database, seen := Recorder())
    assert [(message.object_identifier, message.attempt) for message in seen.messages] == [(666, 5), (2, 1), (3, 1)]
    assert await failures(connection) == []


async def test_after_a_death_no_new_message_cuts_the_backoff_short(
    database: str, connection: asyncpg.Connection
) -> None:
    deadly = await write(connection, obj=666)
    await kill_on(database, 666)
    await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '30 minutes'")
    await connection.execute("UPDATE outboxd.failure SET last_failed_at = now() - interval '10 minutes'")
    new = await write(connection, obj=2)

    await drain_once(database, seen := Recorder())

    assert seen.messages == []
    assert await remaining(connection) == [deadly, new]


async def test_a_new_message_about_the_object_that_kills_waits_and_is_coalesced_with_it(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=666)
    await kill_on(database, 666)
    newer = await write(connection, obj=666)
    await drain_once(database, held := Recorder())
    assert held.messages == []
    await make_due(connection)

    assert await kill_on(database, 666) == [666]

    assert await schedules(connection) == [4.0, 4.0]
    await make_due(connection)
    await drain_once(database, seen := Recorder())
    assert [(message.id, message.attempt, message.coalesced) for message in seen.messages] == [(newer, 3, 2)]
    assert await remaining(connection) == []


async def test_with_on_error_skip_a_death_holds_only_its_object(database: str, connection: asyncpg.Connection) -> None:
    deadly = await write(connection, category="SKIPPING", obj=666)
    await write(connection, category="SKIPPING", obj=1)
    await kill_on(database, 666)

    await drain_once(database, seen := Recorder())

    assert seen.objects == [1]
    assert await remaining(connection) == [deadly]
    assert await schedules(connection) == [2.0]


async def test_of_messages_that_stand_apart_only_the_one_that_is_delivered_is_moved(
    database: str, connection: asyncpg.Connection
) -> None:
    written = [await write(connection, category="AUDIT", obj=1) for _ in range(3)]
    waits: list[list[float]] = []

    async def look(_message: Message) -> None:
        async with connected(database) as other:
            waits.append(await schedules(other))

    await drain_once(database, seen := Recorder(look))

    assert seen.ids == written
    assert waits == [[2.0]] * 3
    assert await failures(connection) == []


async def test_a_delivery_that_is_not_made_costs_no_delay(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, obj=1)
    await write(connection, obj=2)
    for _ in range(2):
        await drain_once(database, Recorder(failing()))
        await make_due(connection)
    gate = Gate()
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        assert await schedules(connection) == [8.0]
        pipeline.stop_hard()

    assert await schedules(connection) == []
    await drain_once(database, Recorder(failing()))
    assert await schedules(connection) == [8.0, 8.0]


@pytest.mark.parametrize("ending", ["failure", "hard stop"])
async def test_an_ending_changes_nothing_once_somebody_else_has_moved_the_messages(
    database: str, connection: asyncpg.Connection, ending: str
) -> None:
    await write(connection, obj=1)
    behind = await write(connection, obj=2)
    gate = Gate()

    async def fail(message: Message) -> None:
        await gate(message)
        raise ValueError

    async with draining(database, Recorder(fail)) as pipeline:
        await gate.closed_behind()
        await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 hour' WHERE id <> $1", behind)
        before = await connection.fetch("SELECT * FROM outbox ORDER BY id")
        counted = await failures(connection)
        if ending == "failure":
            pipeline.stop()
            gate.opened.set()
        else:
            pipeline.stop_hard()

    assert await connection.fetch("SELECT * FROM outbox ORDER BY id") == before
    assert await failures(connection) == counted


@pytest.mark.parametrize("failed_before", [False, True])
async def test_a_delivery_that_is_cancelled_by_a_hard_stop_is_no_failure(
    database: str, connection: asyncpg.Connection, failed_before: bool
) -> None:
    await write(connection, category="LIMITED")
    if failed_before:
        await drain_once(database, Recorder(failing(error=ValueError("before"))))
        await make_due(connection)
    gate = Gate()

    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        assert [failure["attempts"] for failure in await failures(connection)] == [1 + failed_before]
        pipeline.stop_hard()

    assert [failure["attempts"] for failure in await failures(connection)] == [1] * failed_before
    assert all("before" in failure["last_error"] for failure in await failures(connection))
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE scheduled_for <= now()") == 1


async def test_deaths_count_towards_max_attempts(database: str, connection: asyncpg.Connection) -> None:
    deadly = await write(connection, category="LIMITED")
    for _ in range(3):
        gate = Gate()
        async with draining(database, gate) as pipeline:
            await gate.closed_behind()
            die(pipeline)
        await make_due(connection)

    seen = Recorder()
    await drain_once(database, seen)

    assert seen.messages == []
    [letter] = await connection.fetch("SELECT message_id, attempts, reason FROM outboxd.dead_letter")
    assert (letter["message_id"], letter["attempts"] >= 3, "died" in letter["reason"]) == (deadly, True, True)
    assert await remaining(connection) == []
    assert await failures(connection) == []


async def test_failures_count_towards_max_attempts_once_each(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, category="LIMITED")
    seen = Recorder(failing())
    for _ in range(4):
        await drain_once(database, seen)
        await make_due(connection)

    assert [message.attempt for message in seen.messages] == [1, 2, 3]
    [letter] = await connection.fetch("SELECT attempts FROM outboxd.dead_letter")
    assert letter["attempts"] == 3


async def test_a_burial_leaves_the_rest_of_the_shard_alone(database: str, connection: asyncpg.Connection) -> None:
    for obj in (1, 2, 3):
        await write(connection, obj=obj)
    seen = Recorder(failing(1, error=Discard("no")))

    await drain_once(database, seen)

    assert seen.objects == [1, 2, 3]
    assert await remaining(connection) == []
    assert await failures(connection) == []
    assert await connection.fetchval("SELECT count(*) FROM outboxd.dead_letter") == 1


async def test_on_error_skip_moves_only_the_object_that_is_delivered(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (1, 2, 1):
        await write(connection, category="SKIPPING", obj=obj)
    seen = Recorder(failing(1))

    await drain_once(database, seen)

    assert seen.objects == [1, 2]
    assert await schedules(connection) == [2.0, 2.0]
    assert len(await failures(connection)) == 1


async def test_a_category_that_is_off_is_not_moved_by_a_delivery_of_another(
    database: str, connection: asyncpg.Connection
) -> None:
    off = await write(connection, category="MEMBER", due_in_s=-60)
    await write(connection, category="TEAM", obj=1)
    await write(connection, category="TEAM", obj=2)
    before = await connection.fetchrow("SELECT * FROM outbox WHERE id = $1", off)
    await connection.execute("INSERT INTO outboxd.pause (kind, category) VALUES ('category', 1)")
    seen = Recorder()

    await drain_once(database, seen)

    assert seen.objects == [1, 2]
    assert await connection.fetchrow("SELECT * FROM outbox WHERE id = $1", off) == before


async def test_retry_later_chooses_the_delay(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, obj=1)
    await write(connection, obj=2)

    await drain_once(database, Recorder(failing(error=RetryLater(5))))

    assert await schedules(connection) == [5.0, 5.0]
    assert [failure["attempts"] for failure in await failures(connection)] == [1]


async def test_many_shards_are_delivered_and_nothing_is_lost(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 200, shards=40, category="AUDIT")
    written = await remaining(connection)
    seen = Recorder()
    async with draining(database, seen):
        await eventually(lambda: len(seen.messages) == 200)

    assert sorted(seen.ids) == written
    assert await remaining(connection) == []
    assert await failures(connection) == []


async def test_a_death_is_noticed_while_running_and_forgotten_after_five_minutes(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxd.claims, "PING_INTERVAL_S", 0.05)
    await connection.execute("UPDATE outboxd.worker SET died_at = now() - interval '4 minutes'")
    async with draining(database, Recorder()) as pipeline:
        assert pipeline.live.prepared
        await connection.execute("UPDATE outboxd.worker SET died_at = now() - interval '5 minutes' WHERE pid = 1")
        await eventually(lambda: not pipeline.live.prepared)

        await connection.execute(DEAD)
        await eventually(lambda: pipeline.live.prepared)


async def test_a_clean_end_is_no_death(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("DELETE FROM outboxd.worker")
    for _ in range(4):
        async with draining(database, Recorder()) as pipeline:
            assert not pipeline.live.prepared

    assert await connection.fetchval("SELECT count(*) FROM outboxd.worker") == 0
