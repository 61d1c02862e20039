"""Settling: what was delivered is deleted, if need be later; a settle that fails is no failed delivery."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

import outboxd.settle
from outboxd.errors import Discard, SchemaError
from tests.drains import (
    Gate,
    Recorder,
    configure,
    connected,
    draining,
    failing,
    failures,
    outboxd_backends,
    passes_more,
    remaining,
    until_empty,
    write,
    write_many,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.pipeline import Pipeline


@pytest.fixture(autouse=True)
def short_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    """Try a refused settle again after a moment."""
    monkeypatch.setattr(outboxd.settle, "DEFER_S", 0.05)


async def shorten_lock_timeout(pipeline: Pipeline) -> None:
    """Let the settle give up on a locked row at once; it waits for 5 s otherwise."""
    await eventually(lambda: pipeline.branches[0].outbox is not None)
    outbox = pipeline.branches[0].outbox
    assert outbox is not None
    outbox.settling._settings["lock_timeout"] = "20"


async def test_a_locked_message_does_not_keep_those_of_other_shards_from_being_settled(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    async with draining(database, seen) as pipeline, connected(database) as blocker:
        await shorten_lock_timeout(pipeline)
        async with blocker.transaction():
            await write_many(connection, 10, shards=10)
            locked = await _lock_one(blocker)
            await eventually(lambda: len(seen.messages) == 10)

            async def others_are_gone() -> bool:
                return await remaining(connection) == [locked]

            await eventually(others_are_gone)
        await until_empty(connection)

    assert len(seen.messages) == 10
    assert await failures(connection) == []


async def _lock_one(blocker: asyncpg.Connection) -> int:
    return int(await blocker.fetchval("SELECT id FROM outbox WHERE shard_identifier = 4 FOR UPDATE"))


async def test_deletes_of_a_light_load_share_a_commit_until_somebody_waits_for_one(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxd.settle, "GATHER_S", 3_600)
    seen = Recorder()
    async with draining(database, seen) as pipeline:
        await write(connection, shard=1)
        await until_empty(connection)  # the first one has nothing to wait for

        gathered = [await write(connection, shard=2), await write(connection, shard=3)]
        await eventually(lambda: len(seen.messages) == 3)
        left = await remaining(connection)

        await write(connection, shard=2)  # its shard is held until what was delivered of it is gone
        await until_empty(connection)
        await eventually(lambda: pipeline.totals()["retired"] == 4)
        await write(connection, shard=4)
        await eventually(lambda: len(seen.messages) == 5)

    assert left == gathered
    assert await remaining(connection) == []  # a stop waits for nothing


@pytest.mark.parametrize(
    ("count", "shards"), [(outboxd.settle.GATHER_ROWS_MAX, 20), (9, 1)], ids=["much", "a shard that goes on"]
)
async def test_much_or_what_a_shard_waits_for_is_deleted_at_once(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, count: int, shards: int
) -> None:
    monkeypatch.setattr(outboxd.settle, "GATHER_S", 3_600)

    async with draining(database, Recorder(), configure(turn_rows_max=3 if shards == 1 else 3_000)):
        await write(connection)
        await until_empty(connection)
        await write_many(connection, count, shards=shards)
        await until_empty(connection)


async def test_what_waits_for_others_is_deleted_before_the_table_is_looked_at_anew(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxd.settle, "GATHER_S", 3_600)
    seen = Recorder()

    async def broken() -> None:
        raise SchemaError("the table has changed")

    async with draining(database, seen) as pipeline:
        await write(connection, shard=1)
        await until_empty(connection)
        await write(connection, shard=2)
        await eventually(lambda: len(seen.messages) == 2)
        scheduler = pipeline.branches[0].scheduler
        assert scheduler is not None
        monkeypatch.setattr(scheduler.finder, "look", broken)
        scheduler.wake()
        await until_empty(connection)
        await write(connection, shard=3)
        await eventually(lambda: len(seen.messages) == 3)

    assert [message.shard_identifier for message in seen.messages] == [1, 2, 3]


async def test_a_failure_is_written_at_once(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxd.settle, "GATHER_S", 3_600)
    seen = Recorder(failing())

    async with draining(database, seen):
        await write(connection, shard=1)
        await eventually(lambda: failures(connection))
        await write(connection, shard=2)

        async def both_failed() -> bool:
            return len(await failures(connection)) == 2

        await eventually(both_failed)


async def test_a_locked_message_is_settled_later_and_not_delivered_again(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    async with draining(database, gate) as pipeline, connected(database) as blocker:
        await shorten_lock_timeout(pipeline)
        await write(connection)
        await gate.closed_behind()
        async with blocker.transaction():
            await blocker.execute("SELECT FROM outbox FOR UPDATE")
            gate.opened.set()
            await passes_more(pipeline)
        await until_empty(connection)

    assert len(gate.messages) == 1


async def test_a_failure_of_a_locked_message_is_written_later_and_counted_once(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()

    async def fail(message: object) -> None:
        await gate(message)  # type: ignore[arg-type]
        raise ValueError

    async with draining(database, Recorder(fail)) as pipeline, connected(database) as blocker:
        await shorten_lock_timeout(pipeline)
        await write(connection, obj=1)
        await write(connection, obj=2)
        await gate.closed_behind()
        async with blocker.transaction():
            await blocker.execute("SELECT FROM outbox FOR UPDATE")
            gate.opened.set()
            await passes_more(pipeline)
            assert await failures(connection) == []
        await eventually(lambda: pipeline.totals()["failures"] == 1)

    assert [failure["attempts"] for failure in await failures(connection)] == [1]
    assert len(gate.messages) == 1


async def test_a_settle_session_that_is_killed_is_opened_again_and_nothing_is_delivered_twice(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    async with draining(database, gate):
        await write(connection, obj=1)
        await gate.closed_behind()
        for pid in await outboxd_backends(connection, "settle"):
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
        gate.opened.set()
        await until_empty(connection)
        await write(connection, obj=2)
        await until_empty(connection)

    assert [message.object_identifier for message in gate.messages] == [1, 2]


async def test_what_was_delivered_is_settled_before_a_clean_stop_ends(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 500, shards=50)
    seen = Recorder()
    async with draining(database, seen) as pipeline:
        await eventually(lambda: len(seen.messages) >= 100)
        pipeline.stop()

    assert set(await remaining(connection)).isdisjoint(seen.ids)


async def test_what_was_delivered_is_settled_before_a_hard_stop_ends(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 100, shards=1)
    gate = Gate()

    async def hang_at_50(message: object) -> None:
        if len(seen.messages) == 50:
            await gate(message)  # type: ignore[arg-type]

    seen = Recorder(hang_at_50)
    async with draining(database, seen) as pipeline:
        await gate.closed_behind()
        pipeline.stop_hard()

    assert set(await remaining(connection)) & set(seen.ids) == {seen.ids[-1]}
    assert len(await remaining(connection)) == 51


async def test_deliveries_wait_while_nothing_can_be_settled(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outboxd.settle, "UNSETTLED_ROWS_MAX", 40)
    seen = Recorder()
    await write_many(connection, 400, shards=100)
    async with draining(database, seen, configure(concurrency=1)) as pipeline, connected(database) as blocker:
        async with blocker.transaction():
            await blocker.execute("LOCK TABLE outbox IN SHARE MODE")
            await eventually(lambda: _waits(pipeline))
            # What was pending, what the settler had taken before, and the turn under way.
            assert len(seen.messages) <= 100
        await until_empty(connection)

    assert len(seen.messages) == 400


def _waits(pipeline: Pipeline) -> bool:
    settler = pipeline.branches[0].settler
    return settler is not None and settler.is_full


@pytest.mark.parametrize("statement", ["payload = '1'", "scheduled_for = scheduled_for - interval '1 day'"])
async def test_a_message_that_somebody_updates_while_it_is_settled_is_delivered_once(
    database: str, connection: asyncpg.Connection, statement: str
) -> None:
    gate = Gate()
    async with draining(database, gate), connected(database) as other:
        await write(connection)
        await gate.closed_behind()
        async with other.transaction():
            await other.execute(f"UPDATE outbox SET {statement}")
            gate.opened.set()
            await eventually(lambda: _settle_waits(connection))
        await until_empty(connection)

    assert len(gate.messages) == 1
    assert await failures(connection) == []


async def _settle_waits(connection: asyncpg.Connection) -> bool:
    return bool(
        await connection.fetchval(
            "SELECT EXISTS (SELECT FROM pg_stat_activity WHERE datname = current_database()"
            " AND application_name ~ '^outboxd: (settle|fail)' AND wait_event_type = 'Lock')"
        )
    )


async def test_a_failed_message_that_somebody_updates_while_it_is_settled_is_not_tried_at_once(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()

    async def fail(message: object) -> None:
        await gate(message)  # type: ignore[arg-type]
        raise ValueError

    await write(connection)
    await connection.execute("UPDATE outbox SET scheduled_from = scheduled_for - interval '1 hour'")  # waits long again
    async with draining(database, Recorder(fail)) as pipeline, connected(database) as other:
        await gate.closed_behind()
        async with other.transaction():
            await other.execute("UPDATE outbox SET payload = '1'")
            gate.opened.set()
            await eventually(lambda: _settle_waits(connection))
        await eventually(lambda: pipeline.totals()["failures"] == 1)
        await passes_more(pipeline)

    assert len(gate.messages) == 1
    assert await connection.fetchval("SELECT scheduled_for > now() FROM outbox")
    assert [failure["attempts"] for failure in await failures(connection)] == [1]


async def test_a_message_that_somebody_updates_while_it_is_buried_is_buried_in_the_end(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()

    async def discard(message: object) -> None:
        await gate(message)  # type: ignore[arg-type]
        raise Discard("no")

    async with draining(database, Recorder(discard)), connected(database) as other:
        await write(connection)
        await gate.closed_behind()
        async with other.transaction():
            await other.execute("UPDATE outbox SET payload = '1'")
            gate.opened.set()
            await eventually(lambda: _settle_waits(connection))
        await until_empty(connection)

    assert await connection.fetchval("SELECT count(*) FROM outboxd.dead_letter") == 1


async def test_an_outbox_whose_rows_may_not_be_deleted_does_not_deliver_again_and_again(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "CREATE FUNCTION refuse() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not today'; END $$;"
        "CREATE TRIGGER refuse BEFORE DELETE ON outbox FOR EACH STATEMENT EXECUTE FUNCTION refuse()"
    )
    await write(connection)
    seen = Recorder()
    async with draining(database, seen) as pipeline:
        await eventually(lambda: len(seen.messages) == 1)
        await passes_more(pipeline, 5)
        assert len(seen.messages) == 1

        await connection.execute("DROP TRIGGER refuse ON outbox")
        await until_empty(connection)

    assert len(seen.messages) == 1


async def test_a_failure_table_that_is_missing_for_a_while_loses_nothing(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("ALTER TABLE outboxd.failure RENAME TO failure_away")
    await write(connection)
    seen = Recorder(failing())
    async with draining(database, seen) as pipeline:
        await eventually(lambda: pipeline.branches[0].outbox is not None)
        assert seen.messages == []
        await connection.execute("ALTER TABLE outboxd.failure_away RENAME TO failure")
        await eventually(lambda: pipeline.totals()["failures"] == 1)

    assert len(await remaining(connection)) == 1
