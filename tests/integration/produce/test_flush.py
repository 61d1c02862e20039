"""Flush: after the commit the shards are drained here, by the daemon's rules, and nobody delivers beside us."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import errors, session
from outboxd.claims import SHARD_CLASS
from outboxd.producer import NewMessage, Producer, flush, seat
from tests.drains import (
    CONTROL,
    DEAD,
    REGION,
    TEXT,
    UUID,
    Gate,
    Recorder,
    by_hand,
    configure,
    connected,
    drain_once,
    draining,
    failing,
    failures,
    make_due,
    outboxd_backends,
    remaining,
    shard_locks,
    until_empty,
    write,
    write_many,
)
from tests.eventually import PATIENCE_S, eventually
from tests.produce import producing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd import Message

Work = "Callable[[], Awaitable[None]]"


async def save(
    producer: Producer, connection: Any, *, shard: Any = 1, obj: Any = 1, category: str = "MEMBER", **more: Any
) -> None:
    async with producer.context(connection, flush=True) as outbox:
        await outbox.save(category, shard_identifier=shard, object_identifier=obj, **more)


@pytest.fixture
async def other(database: str) -> AsyncIterator[asyncpg.Connection]:
    async with connected(database) as opened:
        yield opened


async def lock_of(connection: asyncpg.Connection, shard: int = 1) -> int:
    """The key that a shard of outbox region is locked by."""
    key = "hashtext(concat_ws('/', 'public.outbox'::regclass::oid, 0, $1::int8))"
    return int(await connection.fetchval(f"SELECT {key}", shard))


async def lock(connection: asyncpg.Connection, shard: int = 1) -> None:
    won = await connection.fetchval(
        "SELECT pg_try_advisory_lock($1::int4, $2::int4)", SHARD_CLASS, await lock_of(connection, shard)
    )
    assert won


async def unlock(connection: asyncpg.Connection, shard: int = 1) -> None:
    await connection.execute("SELECT pg_advisory_unlock($1::int4, $2::int4)", SHARD_CLASS, await lock_of(connection))


# --- what is delivered --------------------------------------------------------------------------------------


async def test_what_was_committed_is_delivered_and_deleted(database: str, connection: asyncpg.Connection) -> None:
    committed: list[int] = []

    async def receive(message: Message) -> None:
        committed.append(await other_connection.fetchval("SELECT count(*) FROM outbox"))

    seen = Recorder(receive)
    async with connected(database) as other_connection, producing(database, seen) as producer:
        await save(producer, connection, obj=7, payload={"a": 1})

        [message] = seen.messages
        assert (message.object_identifier, message.payload, message.attempt, message.coalesced) == (7, {"a": 1}, 1, 1)
        assert committed == [1]
        assert (await remaining(connection), await shard_locks(connection)) == ([], 0)


async def test_what_was_in_the_shard_before_is_delivered_with_it_in_order(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in (1, 2, 1):
        await write(connection, obj=obj)
    elsewhere = await write(connection, shard=2)
    seen = Recorder()
    async with producing(database, seen) as producer:
        await save(producer, connection, obj=2)

    assert [(m.object_identifier, m.coalesced) for m in seen.messages] == [(1, 2), (2, 2)]
    assert await remaining(connection) == [elsewhere]


async def test_more_messages_than_a_turn_takes(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 25)
    seen = Recorder()
    async with producing(database, seen, configure(turn_rows_max=10)) as producer:
        await save(producer, connection, obj=99)

    assert seen.objects == [*range(25), 99]
    assert await remaining(connection) == []


async def test_it_ends_at_the_newest_message_that_was_there_at_the_start(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    later: list[int] = []

    async def receive(_: Message) -> None:
        later.append(await write(other, obj=len(later)))

    seen = Recorder(receive)
    async with producing(database, seen) as producer:
        await save(producer, connection, obj=50)

    assert seen.objects == [50]
    assert await remaining(connection) == later


async def test_every_kind_of_outbox(database: str, connection: asyncpg.Connection) -> None:
    from tests.integration.produce.test_context import ID

    seen = Recorder()
    config = configure(REGION, CONTROL, UUID, TEXT)
    messages = [
        NewMessage(category="PROFILE", shard_identifier=7, object_identifier=8, region_name="eu"),
        NewMessage(category="PROFILE", shard_identifier=7, object_identifier=8, region_name="us"),
        NewMessage(category="MEMBER", shard_identifier=ID, object_identifier=ID, outbox="uuid"),
        NewMessage(category="MEMBER", shard_identifier="it's", object_identifier="é", outbox="text"),
    ]
    async with producing(database, seen, config) as producer, producer.context(connection, flush=True) as outbox:
        await outbox.save_many(messages)

    assert [(m.outbox, m.region_name, m.shard_identifier) for m in seen.messages] == [
        ("control", "eu", 7),
        ("control", "us", 7),
        ("uuid", None, ID),
        ("text", None, "it's"),
    ]


async def test_large_payloads(database: str, connection: asyncpg.Connection) -> None:
    seen = Recorder()
    async with producing(database, seen) as producer:
        await save(producer, connection, payload="x" * 100_000)

    assert seen.messages[0].payload == "x" * 100_000


async def test_plain_functions_are_receivers_too(database: str, connection: asyncpg.Connection) -> None:
    seen: list[Any] = []

    def receive(message: Message) -> None:
        seen.append(message.object_identifier)

    async with producing(database, receive) as producer:
        await save(producer, connection, obj=3)

    assert seen == [3]


# --- failures -----------------------------------------------------------------------------------------------


async def test_a_failure_is_raised_with_its_message_and_backs_off(
    database: str, connection: asyncpg.Connection
) -> None:
    async with producing(database, Recorder(failing())) as producer:
        with pytest.raises(errors.OutboxFlushError, match="object 1 is broken") as failed:
            await save(producer, connection, payload="x")

    [failure] = await failures(connection)
    assert failed.value.message is not None
    assert (failed.value.message.payload, failed.value.message.id) == ("x", failure["message_id"])
    assert failure["attempts"] == 1
    assert await connection.fetchval("SELECT scheduled_for > now() FROM outbox")
    assert await shard_locks(connection) == 0
    await make_due(connection)
    await connection.execute("UPDATE outboxd.failure SET last_failed_at = now() - interval '2 minutes'")
    again = Recorder()
    await drain_once(database, again)
    assert again.messages[0].attempt == 2


async def test_an_older_object_that_fails_keeps_ours(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, obj=1)
    seen = Recorder(failing(1))
    async with producing(database, seen) as producer:
        with pytest.raises(errors.OutboxFlushError, match="object 1 is broken"):
            await save(producer, connection, obj=2)

    assert seen.objects == [1]


async def test_an_older_object_that_is_skipped_does_not(database: str, connection: asyncpg.Connection) -> None:
    old = await write(connection, obj=1, category="SKIPPING")
    seen = Recorder(failing(1))
    async with producing(database, seen, configure(turn_rows_max=1)) as producer:
        await save(producer, connection, obj=2)

    assert (seen.objects, await remaining(connection)) == ([1, 2], [old])


async def test_of_several_failures_the_one_of_ours_is_told(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, obj=1, category="SKIPPING")
    async with producing(database, Recorder(failing())) as producer:
        with pytest.raises(errors.OutboxFlushError, match="object 2 is broken"):
            await save(producer, connection, obj=2, category="SKIPPING")


async def test_a_shard_in_backoff_is_left_alone(database: str, connection: asyncpg.Connection) -> None:
    seen = Recorder(failing())
    async with producing(database, seen) as producer:
        with pytest.raises(errors.OutboxFlushError):
            await save(producer, connection)
        with pytest.raises(errors.OutboxFlushError, match=r"waits behind a failure: .*object 1 is broken") as held:
            await save(producer, connection, obj=2)

    assert seen.objects == [1]
    assert held.value.message is not None
    assert held.value.message.object_identifier == 2


async def test_every_shard_is_flushed_though_one_fails(database: str, connection: asyncpg.Connection) -> None:
    seen = Recorder(failing(1))
    async with producing(database, seen) as producer:
        with pytest.raises(errors.OutboxFlushError, match="object 1 is broken"):
            await _save_shards(producer, connection, 1, 2, 3)

    assert seen.objects == [1, 2, 3]
    assert len(await remaining(connection)) == 1


async def _save_shards(producer: Producer, connection: Any, *shards: int) -> None:
    async with producer.context(connection, flush=True) as outbox:
        for shard in shards:
            await outbox.save("MEMBER", shard_identifier=shard, object_identifier=shard)


async def test_a_message_that_is_discarded_is_no_error(database: str, connection: asyncpg.Connection) -> None:
    async with producing(database, Recorder(failing(error=errors.Discard("gone")))) as producer:
        await save(producer, connection)

    assert await connection.fetchval("SELECT reason FROM outboxd.dead_letter") == "gone"


async def test_a_database_that_refuses_the_flush_is_said(database: str, connection: asyncpg.Connection) -> None:
    async with producing(database, Recorder()) as producer:
        await connection.execute("DROP TABLE outboxd.pause")
        with pytest.raises(errors.OutboxFlushError, match="the daemon delivers later") as failed:
            await save(producer, connection)

    assert isinstance(failed.value.__cause__, errors.SchemaError)
    assert len(await remaining(connection)) == 1


# --- kill switches ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "off",
    [
        "INSERT INTO outboxd.pause (kind, outbox) VALUES ('outbox', 'region')",
        "INSERT INTO outboxd.pause (kind, category) VALUES ('category', 1)",
        "INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier) VALUES ('shard', 0, '1')",
        "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_categories', '[\"MEMBER\"]')",
    ],
)
async def test_what_is_switched_off_stays_and_is_no_error(
    database: str, connection: asyncpg.Connection, off: str
) -> None:
    await connection.execute(off)
    seen = Recorder()
    async with producing(database, seen) as producer:
        await save(producer, connection)

    assert (seen.messages, len(await remaining(connection)), await failures(connection)) == ([], 1, [])


async def test_a_switch_is_obeyed_in_the_middle_of_a_flush(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(seat, "SWITCHES_AGE_S_MAX", 0.01)
    await write_many(connection, 5)

    async def receive(message: Message) -> None:
        if message.object_identifier == 2:
            await other.execute("INSERT INTO outboxd.pause (kind, outbox) VALUES ('outbox', 'region')")
            async with asyncio.timeout(PATIENCE_S):
                await noticed.wait()

    noticed = asyncio.Event()
    look = seat.Seat.look

    async def looking(own: Any, live: Any) -> None:
        await look(own, live)
        if live.switches.outboxes:
            noticed.set()

    monkeypatch.setattr(seat.Seat, "look", looking)
    seen = Recorder(receive)
    async with producing(database, seen) as producer:
        await save(producer, connection, obj=9)

    assert seen.objects == [0, 1, 2]
    assert len(await remaining(connection)) == 3


# --- beside other drainers ----------------------------------------------------------------------------------


async def test_another_drainer_is_waited_for_without_a_lock_or_a_statement(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await lock(other)
    seen = Recorder()
    async with producing(database, seen) as producer:
        flushing = asyncio.create_task(save(producer, connection))
        await eventually(lambda: outboxd_backends(other, "flush"))
        assert (await shard_locks(other), seen.messages) == (1, [])
        await unlock(other)
        await flushing

    assert len(seen.messages) == 1


async def test_a_shard_that_stays_locked_is_an_error_after_the_timeout(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await lock(other)
    seen = Recorder()
    async with producing(database, seen, flush_timeout_s=0.2) as producer:
        with pytest.raises(errors.OutboxFlushError, match=r"did not end within 0\.2 s") as late:
            await save(producer, connection, payload="x")

    assert late.value.message is not None
    assert late.value.message.payload == "x"
    assert (seen.messages, len(await remaining(connection))) == ([], 1)


async def test_what_the_other_drainer_delivers_is_not_waited_for_longer(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await lock(other)
    seen = Recorder()
    async with producing(database, seen) as producer:
        flushing = asyncio.create_task(save(producer, connection))
        await eventually(lambda: outboxd_backends(other, "flush"))
        await other.execute("DELETE FROM outbox")
        await flushing  # although the lock is held still

    assert seen.messages == []


async def test_inside_a_receiver_a_held_shard_is_left_to_its_holder(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await lock(other, 2)
    async with producing(database, flush_timeout_s=0.5) as producer, connected(database) as inside:

        async def receive(message: Message) -> None:
            if message.shard_identifier == 1:
                await save(inner, inside, shard=2)
                await save(inner, inside, shard=1, obj=2)  # which we drain ourselves

        seen = Recorder(receive)
        async with producing(database, seen) as inner:
            await save(inner, connection)
            assert producer is not inner

    assert seen.objects == [1]
    assert len(await remaining(connection)) == 2


@pytest.mark.parametrize("connections", [1, 5])
async def test_flushes_that_write_into_each_other_s_shards_end(
    database: str, connection: asyncpg.Connection, connections: int
) -> None:
    both_inside = asyncio.Barrier(2)
    config = configure(REGION)

    async def receive(message: Message) -> None:
        if message.payload == "outer":
            if connections > 1:
                await both_inside.wait()
            async with connected(database) as inside:
                await save(producer, inside, shard=3 - int(str(message.shard_identifier)), obj=9)

    seen = Recorder(receive)
    async with (
        producing(database, seen, config, flush_connections=connections) as producer,
        connected(database) as second,
    ):
        await asyncio.gather(
            save(producer, connection, shard=1, payload="outer"), save(producer, second, shard=2, payload="outer")
        )
        await drain_once(database, seen, config)

    assert sorted(seen.objects) == [1, 1, 9, 9]
    assert await remaining(connection) == []


async def test_many_producers_and_a_daemon_deliver_each_message_once(
    database: str, connection: asyncpg.Connection
) -> None:
    at_work: dict[Any, int] = {}
    together = 0

    async def receive(message: Message) -> None:
        nonlocal together
        shard = message.shard_identifier
        at_work[shard] = at_work.get(shard, 0) + 1
        together = max(together, at_work[shard])
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        at_work[shard] -= 1

    seen = Recorder(receive)
    config = configure(categories=configure().categories)
    async with producing(database, seen, config, flush_timeout_s=20) as producer, draining(database, seen, config):

        async def work(number: int) -> None:
            async with connected(database) as own:
                for turn in range(10):
                    await save(producer, own, shard=turn % 3, obj=100 * number + turn, category="AUDIT")

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.gather(*map(work, range(6)))
        await until_empty(connection)

    assert together == 1
    assert sorted(seen.objects) == sorted(100 * number + turn for number in range(6) for turn in range(10))


# --- cut off ------------------------------------------------------------------------------------------------


async def cut_off(task: asyncio.Task[None]) -> None:
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task


async def test_a_flush_that_is_cancelled_keeps_what_was_not_delivered_and_settles_what_was(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    gate = Gate()

    async def receive(message: Message) -> None:
        if message.object_identifier == 2:
            await gate(message)

    seen = Recorder(receive)
    async with producing(database, seen) as producer:
        task = asyncio.create_task(save(producer, connection, obj=2))
        stuck = await gate.closed_behind()
        await cut_off(task)

        assert await remaining(other) == [stuck.id]
        assert (await failures(other), await shard_locks(other)) == ([], 0)
        gate.opened.set()
        await save(producer, connection, obj=3)  # the connection and the sessions are as good as new

    assert seen.objects == [1, 2, 2, 3]


async def test_a_receiver_that_outlives_the_flush_is_cancelled(database: str, connection: asyncpg.Connection) -> None:
    gate = Gate()
    async with producing(database, gate, flush_timeout_s=0.2) as producer:
        with pytest.raises(errors.OutboxFlushError, match="did not end"):
            await save(producer, connection)

    assert (len(await remaining(connection)), await failures(connection)) == (1, [])
    assert await shard_locks(connection) == 0


async def test_a_receiver_that_cancels_itself_has_failed(database: str, connection: asyncpg.Connection) -> None:
    def receive(_: Message) -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()

    async with producing(database, Recorder(receive)) as producer:
        await save(producer, connection)  # it has returned before that took effect: delivered, as for the daemon
        await connection.fetchval("SELECT 1")

    assert await remaining(connection) == []


async def test_a_connection_that_dies_in_mid_flush(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[asyncpg.Connection] = []
    connect = session.connect

    async def noted(dsn: str, *, name: str, **more: Any) -> asyncpg.Connection:
        made = await connect(dsn, name=name, **more)
        opened.extend([made] if "flush" in name else [])
        return made

    async def receive(message: Message) -> None:
        if message.object_identifier == 1:
            for pid in await outboxd_backends(other, "flush"):
                await other.execute("SELECT pg_terminate_backend($1)", pid)
            await eventually(lambda: opened and all(each.is_closed() for each in opened))  # and we have seen it

    monkeypatch.setattr(session, "connect", noted)
    await write(connection, obj=1)
    seen = Recorder(receive)
    async with producing(database, seen) as producer:
        with pytest.raises(errors.OutboxFlushError, match="connection was lost"):
            await save(producer, connection, obj=2)

    assert seen.objects == [1]
    assert len(await remaining(connection)) == 1
    assert await shard_locks(connection) == 0


# --- how a daemon would -------------------------------------------------------------------------------------


async def test_after_a_death_deliveries_are_counted_ahead(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await connection.execute(DEAD)
    await connection.execute("UPDATE outboxd.worker SET died_at = now()")
    counted: list[Any] = []

    async def receive(_: Message) -> None:
        counted.append([row["attempts"] for row in await failures(other)])

    async with producing(database, Recorder(receive)) as producer:
        await save(producer, connection)

    assert counted == [[1]]
    assert (await remaining(connection), await failures(connection)) == ([], [])


async def test_through_a_pooler_the_daemon_is_woken(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def refuse(_: asyncpg.Connection) -> None:
        raise session.pooler_error()

    monkeypatch.setattr(session, "refuse_pooler", refuse)
    heard: list[str] = []
    oid = await connection.fetchval("SELECT 'outbox'::regclass::oid::int8")
    await other.add_listener(f"outboxd_{oid}", lambda *arguments: heard.append(arguments[2]))
    seen = Recorder()
    async with producing(database, seen) as producer:
        await save(producer, connection)
        await save(producer, connection, obj=2)
        assert producer.is_pooled

    await eventually(lambda: len(heard) == 2)
    assert (seen.messages, len(await remaining(connection))) == ([], 2)


async def test_sessions_are_used_again_and_closed_when_idle(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flush, "IDLE_S_MAX", 0.3)
    async with producing(database, Recorder()) as producer:
        await save(producer, connection)
        first = await outboxd_backends(connection, "flush")
        await save(producer, connection, obj=2)
        assert await outboxd_backends(connection, "flush") == first
        assert len(first) == 1

        async def none_left() -> bool:
            return not await outboxd_backends(connection, "flush")

        await eventually(none_left)


async def test_a_held_shard_does_not_keep_the_others(
    database: str, connection: asyncpg.Connection, other: asyncpg.Connection
) -> None:
    await lock(other, 1)
    seen = Recorder()
    async with producing(database, seen, flush_timeout_s=0.3) as producer:
        with pytest.raises(errors.OutboxFlushError, match="did not end"):
            await _save_shards(producer, connection, 1, 2, 3)

    assert seen.objects == [2, 3]


async def test_event_loops_that_end_take_their_connections_along(database: str, connection: asyncpg.Connection) -> None:
    seen = Recorder()
    async with producing(database, seen) as producer:

        async def once(number: int) -> None:
            async with connected(database) as own:
                await save(producer, own, obj=number)

        for number in range(3):
            await asyncio.to_thread(asyncio.run, once(number))
        assert seen.objects == [0, 1, 2]

        async def none_left() -> bool:
            return not await outboxd_backends(connection, "flush")

        await eventually(none_left)


async def test_no_more_connections_than_allowed(database: str, connection: asyncpg.Connection) -> None:
    most = 0

    async def receive(_: Message) -> None:
        nonlocal most
        async with connected(database) as own:
            most = max(most, len(await outboxd_backends(own, "flush")))

    async with producing(database, Recorder(receive), flush_connections=2) as producer:

        async def work(number: int) -> None:
            async with connected(database) as own:
                await save(producer, own, shard=number)

        await asyncio.gather(*map(work, range(8)))

    assert most == 2


async def test_an_empty_context_opens_no_connection(database: str, connection: asyncpg.Connection) -> None:
    async with producing(database, Recorder()) as producer:
        async with producer.context(connection, flush=True):
            pass
        assert await outboxd_backends(connection) == []


async def test_the_lock_is_the_daemon_s_own(database: str, connection: asyncpg.Connection) -> None:
    gate = Gate()
    async with producing(database, gate) as producer, by_hand(database) as daemon:
        flushing = asyncio.create_task(save(producer, connection))
        await gate.closed_behind()
        assert await daemon.claims.claim(await daemon.find()) == []
        gate.opened.set()
        await flushing
