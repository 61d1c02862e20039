"""A delivery that fails: how long its shard waits, what is known of it, and what else goes on."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import pytest

from outboxd.errors import RetryLater
from tests.drains import (
    REGION,
    UNKNOWN_CATEGORY,
    Recorder,
    configure,
    connected,
    drain_once,
    draining,
    failing,
    failures,
    make_due,
    remaining,
    until_empty,
    write,
    write_many,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message
    from outboxd.pipeline import Pipeline


async def delays_s(connection: asyncpg.Connection) -> list[float]:
    """Seconds between scheduled_from and scheduled_for of each message, in order of id."""
    rows = await connection.fetch("SELECT scheduled_for - scheduled_from FROM outbox ORDER BY id")
    return [row[0].total_seconds() for row in rows]


async def test_repeated_failures_wait_2_4_8_s_and_so_on_up_to_an_hour(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    waited = []
    for _ in range(13):
        await drain_once(database, Recorder(failing()))
        waited += await delays_s(connection)
        await make_due(connection)

    assert waited == [2.0**n for n in range(1, 12)] + [3600.0, 3600.0]


async def test_the_database_s_clock_decides_when_a_message_is_tried_again(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    before = await connection.fetchval("SELECT clock_timestamp()")
    await drain_once(database, Recorder(failing()))
    after = await connection.fetchval("SELECT clock_timestamp()")

    scheduled_from = await connection.fetchval("SELECT scheduled_from FROM outbox")
    assert before <= scheduled_from <= after


async def test_all_messages_of_a_shard_share_one_schedule_after_a_failure(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in range(20):
        await write(connection, obj=obj, due_in_s=-obj)
    await drain_once(database, Recorder(failing(0)))

    rows = await connection.fetch("SELECT DISTINCT scheduled_from, scheduled_for FROM outbox")
    assert len(rows) == 1
    assert await delays_s(connection) == [2.0] * 20


async def test_what_was_delivered_before_the_failure_is_gone_and_the_rest_waits(
    database: str, connection: asyncpg.Connection
) -> None:
    written = [await write(connection, obj=obj) for obj in (1, 2, 3, 1)]
    seen = Recorder(failing(2))

    await drain_once(database, seen)

    assert seen.objects == [1, 2]
    assert await remaining(connection) == written[1:3]
    assert await delays_s(connection) == [2.0, 2.0]


async def test_other_shards_are_delivered_while_one_fails(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 20, shards=20)

    pipeline = await drain_once(database, Recorder(failing(7)))

    assert len(await remaining(connection)) == 1
    assert (pipeline.totals()["delivered"], pipeline.totals()["failures"]) == (19, 1)


async def test_many_shards_that_fail_at_once_do_not_cost_a_commit_each(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 300, shards=300)
    pipeline = await drain_once(database, Recorder(failing()))

    assert len(await failures(connection)) == 300
    outbox = pipeline.branches[0].outbox
    assert outbox is not None
    assert outbox.failing.round_trips < 100


async def test_a_failure_is_known_with_its_error_its_count_and_its_times(
    database: str, connection: asyncpg.Connection
) -> None:
    lowest = await write(connection, shard=5, obj=7)
    await write(connection, shard=5, obj=7)
    await drain_once(database, Recorder(failing(error=ValueError("first words"))))
    await make_due(connection)
    await drain_once(database, Recorder(failing(error=ValueError("last words"))))

    [failure] = await failures(connection)
    assert (failure["outbox"], failure["region_name"], failure["shard_scope"]) == ("region", "", 0)
    assert (failure["shard_identifier"], failure["category"], failure["object_identifier"]) == ("5", 1, "7")
    assert (failure["message_id"], failure["attempts"]) == (lowest, 2)
    assert "ValueError: last words" in failure["last_error"]
    assert failure["first_failed_at"] < failure["last_failed_at"]


async def test_the_receiver_hears_which_attempt_it_is(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)
    seen = Recorder(failing())
    for _ in range(3):
        await drain_once(database, seen)
        await make_due(connection)

    assert [message.attempt for message in seen.messages] == [1, 2, 3]


async def test_a_failure_is_forgotten_when_its_object_is_delivered(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    await write(connection, obj=2)
    await drain_once(database, Recorder(failing()))
    await make_due(connection)

    await drain_once(database, Recorder())

    assert await failures(connection) == []
    assert await remaining(connection) == []
    await write(connection, obj=1)
    again = Recorder(failing())
    await drain_once(database, again)
    assert [message.attempt for message in again.messages] == [1]
    assert await delays_s(connection) == [2.0]


async def test_a_retry_of_a_deep_shard_moves_a_thousand_messages_at_most(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 5_000)
    for _ in range(2):
        await drain_once(database, Recorder(failing()))
        await make_due(connection)

    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE scheduled_for > '2020-01-01'") == 1_000
    assert await connection.fetchval("SELECT max(id) FROM outbox WHERE scheduled_for > '2020-01-01'") == 1_000
    assert [failure["attempts"] for failure in await failures(connection)] == [2]


async def test_a_deep_shard_that_failed_waits_as_a_whole_and_is_then_delivered_as_a_whole(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 50)
    config = configure(backoff_rows_max=10)
    await drain_once(database, Recorder(failing()), config)
    held = Recorder()
    await drain_once(database, held, config)
    assert held.messages == []

    await make_due(connection)
    seen = Recorder()
    await drain_once(database, seen, config)

    assert len(seen.messages) == 50
    assert await remaining(connection) == []


@pytest.mark.parametrize("delay_s", [0.25, 90.0, 86_400.0])
async def test_a_receiver_chooses_the_delay_with_retry_later(
    database: str, connection: asyncpg.Connection, delay_s: float
) -> None:
    await write(connection)

    await drain_once(database, Recorder(failing(error=RetryLater(delay_s, "the other side is busy"))))

    assert await delays_s(connection) == [delay_s]
    [failure] = await failures(connection)
    assert (failure["attempts"], failure["last_error"]) == (1, "the other side is busy")


async def test_on_error_skip_holds_only_the_object_that_failed(database: str, connection: asyncpg.Connection) -> None:
    written = [await write(connection, category="SKIPPING", obj=obj) for obj in (1, 2, 1, 3)]
    seen = Recorder(failing(1))

    await drain_once(database, seen)

    assert seen.objects == [1, 2, 3]
    assert await remaining(connection) == [written[0], written[2]]
    assert await delays_s(connection) == [2.0, 2.0]


async def test_messages_of_other_objects_pass_one_that_is_held(database: str, connection: asyncpg.Connection) -> None:
    held = await write(connection, category="SKIPPING", obj=1)
    await drain_once(database, Recorder(failing()))
    newer = await write(connection, category="SKIPPING", obj=1)
    await write(connection, category="SKIPPING", obj=2)
    await write(connection, category="MEMBER", obj=1)
    seen = Recorder()

    await drain_once(database, seen)

    assert [(m.category_name, m.object_identifier) for m in seen.messages] == [("SKIPPING", 2), ("MEMBER", 1)]
    assert await remaining(connection) == [held, newer]


async def test_several_objects_of_one_shard_fail_and_recover_on_their_own(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (1, 2, 3):
        await write(connection, category="SKIPPING", obj=obj)
    await drain_once(database, Recorder(failing(1, 3)))
    assert [failure["object_identifier"] for failure in await failures(connection)] == ["1", "3"]
    await make_due(connection)

    await drain_once(database, Recorder(failing(3)))

    assert [(f["object_identifier"], f["attempts"]) for f in await failures(connection)] == [("3", 2)]
    assert len(await remaining(connection)) == 1


async def test_a_category_that_does_not_coalesce_stops_at_the_message_that_fails(
    database: str, connection: asyncpg.Connection
) -> None:
    written = [await write(connection, category="AUDIT") for _ in range(4)]

    async def fail_at_third(message: Message) -> None:
        if message.id == written[2]:
            raise ValueError

    seen = Recorder(fail_at_third)
    await drain_once(database, seen)

    assert seen.ids == written[:3]
    assert await remaining(connection) == written[2:]


async def test_an_unknown_category_number_backs_its_shard_off_and_names_number_and_message(
    database: str, connection: asyncpg.Connection
) -> None:
    unknown = await write(connection, category=UNKNOWN_CATEGORY)
    await write(connection, obj=2)
    await write(connection, shard=2)
    seen = Recorder()

    await drain_once(database, seen)

    assert seen.shards == [2]
    [failure] = await failures(connection)
    assert str(UNKNOWN_CATEGORY) in failure["last_error"]
    assert str(unknown) in failure["last_error"].replace(str(UNKNOWN_CATEGORY), "")
    assert await delays_s(connection) == [2.0, 2.0]


@pytest.mark.parametrize("on_unhandled", ["fail", "discard"])
async def test_an_unknown_category_is_never_discarded(
    database: str, connection: asyncpg.Connection, on_unhandled: str
) -> None:
    unknown = await write(connection, category=UNKNOWN_CATEGORY)

    await drain_once(database, Recorder(), configure(_region(on_unhandled)))

    assert await remaining(connection) == [unknown]


async def test_a_category_without_receiver_fails_and_says_so(database: str, connection: asyncpg.Connection) -> None:
    written = await write(connection, category="TEAM")

    pipeline = await drain_once(database, {"MEMBER": Recorder()})

    assert await remaining(connection) == [written]
    assert pipeline.totals()["failures"] == 1
    [failure] = await failures(connection)
    assert "no receiver" in failure["last_error"]
    assert "TEAM" in failure["last_error"]


async def test_on_unhandled_discard_retires_messages_without_receiver(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, category="TEAM")
    await write(connection, category="MEMBER")
    seen = Recorder()

    await drain_once(database, {"MEMBER": seen}, configure(_region("discard")))

    assert len(seen.messages) == 1
    assert await remaining(connection) == []
    assert await failures(connection) == []


def _region(on_unhandled: Any) -> Any:
    import msgspec

    return msgspec.structs.replace(REGION, on_unhandled=on_unhandled)


async def test_a_failed_shard_is_not_tried_again_by_the_run_in_which_it_failed(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    seen = Recorder(failing(error=RetryLater(0)))

    pipeline = await drain_once(database, seen)

    assert len(seen.messages) == 1
    assert pipeline.branches[0].bounded is not None
    assert len(pipeline.branches[0].bounded.failed) == 1


async def test_a_daemon_retries_by_itself_when_the_delay_is_over(database: str, connection: asyncpg.Connection) -> None:
    tries = 0

    def fail_twice(_message: Message) -> None:
        nonlocal tries
        tries += 1
        if tries < 3:
            raise RetryLater(0.05)

    async with draining(database, Recorder(fail_twice)):
        await write(connection)
        await until_empty(connection)

    assert tries == 3
    assert await failures(connection) == []


async def test_an_error_text_that_postgresql_cannot_store_is_stored_as_far_as_it_can(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)

    await drain_once(database, Recorder(failing(error=ValueError("a\0b \ud800 " + "x" * 100_000))))

    [failure] = await failures(connection)
    assert "ab" in failure["last_error"]
    assert len(failure["last_error"]) <= 4_000


async def test_a_message_changed_by_somebody_else_during_its_failing_delivery_keeps_that_change(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    future = dt.datetime.now(dt.UTC) + dt.timedelta(days=2)

    async def moved_meanwhile(_message: Message) -> None:
        async with connected(database) as other:
            await other.execute("UPDATE outbox SET scheduled_for = $1", future)
        raise ValueError

    await drain_once(database, Recorder(moved_meanwhile))

    assert await connection.fetchval("SELECT scheduled_for FROM outbox") == future
    assert await failures(connection) == []


async def test_a_message_deleted_by_an_operator_during_its_failing_delivery_leaves_no_failure(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)

    async def deleted_meanwhile(_message: Message) -> None:
        async with connected(database) as other:
            await other.execute("DELETE FROM outbox")
        raise ValueError

    seen = Recorder(deleted_meanwhile)
    async with draining(database, seen) as pipeline:
        await eventually(lambda: seen.messages and not held(pipeline))

    assert await failures(connection) == []
    assert pipeline.totals()["failures"] == 0


def held(pipeline: Pipeline) -> bool:
    scheduler = pipeline.branches[0].scheduler
    return scheduler is None or bool(scheduler._held)


async def test_an_object_that_waits_with_more_messages_than_a_turn_reads_does_not_hide_the_others(
    database: str, connection: asyncpg.Connection
) -> None:
    """With on_error = "skip" only the object waits, however many of its messages lie before those of the others."""
    for _ in range(25):
        await write(connection, obj=1, category="SKIPPING")
    await write(connection, obj=2, category="SKIPPING")
    seen: list[Any] = []

    async def refuses_1(message: Message) -> None:
        seen.append(message.object_identifier)
        if message.object_identifier == 1:
            raise ValueError("not now")

    config = configure(turn_rows_max=10)
    for _ in range(2):
        await drain_once(database, {"SKIPPING": refuses_1}, config)

    assert seen.count(2) == 1
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE object_identifier = 2") == 0
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE object_identifier = 1") == 25
