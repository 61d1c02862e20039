"""`outbox_context`: what is written is part of the transaction, checked, and nested as transactions are."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import decimal
import json
import uuid
from typing import TYPE_CHECKING, Any

import asyncpg
import pytest

from outboxd import errors
from outboxd.producer import NewMessage, Producer, outbox_context, use
from tests.drains import CONTROL, REGION, TEXT, UUID, Recorder, configure, connected, draining, remaining
from tests.eventually import eventually
from tests.produce import producing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Sequence

EVERY = configure(REGION, CONTROL, UUID, TEXT)
ID = uuid.UUID("0e5b2a0c-6a0b-4d43-9e9a-0a6f8d1f5c11")
MEMBER: dict[str, Any] = {"shard_identifier": 1, "object_identifier": 2}


@pytest.fixture
async def producer(database: str) -> AsyncIterator[Producer]:
    async with producing(database, config=EVERY) as made:
        yield made


def member(number: int, **more: Any) -> NewMessage:
    return NewMessage(category="MEMBER", shard_identifier=1, object_identifier=number, outbox="region", **more)


async def save(producer: Producer, connection: Any, *messages: NewMessage, flush: bool | None = None) -> None:
    """Save in a context of its own."""
    async with producer.context(connection, flush=flush) as outbox:
        await outbox.save_many(messages)


async def save_in_vain(producer: Producer, connection: Any, *messages: NewMessage, flush: bool | None = None) -> None:
    """Save in a context of its own, which then fails."""
    with pytest.raises(ZeroDivisionError):
        await _save_and_fail(producer, connection, messages, flush)


async def _save_and_fail(
    producer: Producer, connection: Any, messages: Sequence[NewMessage], flush: bool | None
) -> None:
    async with producer.context(connection, flush=flush) as outbox:
        await outbox.save_many(messages)
        raise ZeroDivisionError


async def rows(connection: Any, table: str = "outbox") -> list[dict[str, Any]]:
    return [dict(row) for row in await connection.fetch(f"SELECT * FROM {table} ORDER BY id")]


async def objects(connection: Any) -> list[int]:
    return [row["object_identifier"] for row in await rows(connection)]


# --- what is written ----------------------------------------------------------------------------------------


async def test_a_message_is_written_with_the_change(
    producer: Producer, database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("CREATE TABLE account (id bigint)")
    async with connected(database) as other, producer.context(connection) as outbox:
        await connection.execute("INSERT INTO account VALUES (2)")
        number = await outbox.save("MEMBER", outbox="region", **MEMBER, payload={"name": "é", "n": 1.5})
        assert await remaining(other) == []

    [row] = await rows(connection)
    assert await connection.fetchval("SELECT count(*) FROM account") == 1
    assert (row["id"], row["shard_scope"], row["shard_identifier"], row["category"]) == (number, 0, 1, 1)
    assert (row["object_identifier"], json.loads(row["payload"])) == (2, {"name": "é", "n": 1.5})
    assert row["scheduled_for"] == dt.datetime(2016, 8, 1, tzinfo=dt.UTC)


async def test_a_rollback_takes_the_messages_along(producer: Producer, connection: asyncpg.Connection) -> None:
    await save_in_vain(producer, connection, member(1), member(2))

    assert await remaining(connection) == []
    assert not connection.is_in_transaction()


async def test_many_messages_of_many_outboxes_are_one_call(producer: Producer, connection: asyncpg.Connection) -> None:
    control = NewMessage(category="PROFILE", shard_identifier=7, object_identifier=8, region_name="eu")
    by_uuid = NewMessage(category="MEMBER", shard_identifier=ID, object_identifier=str(ID), outbox="uuid")
    text = NewMessage(category="MEMBER", shard_identifier="it's", object_identifier="é", outbox="text")

    async with producer.context(connection) as outbox:
        ids = await outbox.save_many([member(1), control, member(2), by_uuid, text])
        assert await outbox.save_many([]) == []

    assert ids == [1, 1, 2, 1, 1]
    assert await objects(connection) == [1, 2]
    [row] = await rows(connection, "control_outbox")
    assert (row["region_name"], row["shard_scope"], row["shard_identifier"], row["category"]) == ("eu", 1, 7, 6)
    assert (await rows(connection, "uuid_outbox"))[0]["object_identifier"] == ID
    assert (await rows(connection, "text_outbox"))[0]["shard_identifier"] == "it's"


async def test_a_payload_may_hold_what_an_application_has(producer: Producer, connection: asyncpg.Connection) -> None:
    payload = {
        "id": ID,
        "at": dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC),
        "on": dt.date(2026, 1, 2),
        "price": decimal.Decimal("1.10"),
        "big": 2**70,
        "text": 'a\\u0000b \\ " \n',
    }
    async with producer.context(connection) as outbox:
        await outbox.save_many([member(1, payload=payload), member(2, payload=[]), member(3), member(4, payload=False)])

    first, *others = [row["payload"] for row in await rows(connection)]
    assert json.loads(first) == {
        **payload,
        "id": str(ID),
        "at": "2026-01-02T03:04:05+00:00",
        "on": "2026-01-02",
        "price": "1.10",
    }
    assert others == ["[]", None, "false"]


async def test_headers_go_where_the_table_has_the_column(producer: Producer, connection: asyncpg.Connection) -> None:
    async with producer.context(connection) as outbox:
        await outbox.save_many([member(1, headers={"tenant": "a"}), member(2)])
    assert [row["headers"] for row in await rows(connection)] == ['{"tenant": "a"}', None]


async def test_a_table_without_headers_takes_none(producer: Producer, connection: asyncpg.Connection) -> None:
    await connection.execute("ALTER TABLE outbox DROP COLUMN headers")
    async with producer.context(connection) as outbox:
        await outbox.save_many([member(1)])
        with pytest.raises(errors.InvalidOutboxError, match="outbox region has no column headers"):
            await outbox.save_many([member(2, headers={})])

    assert await objects(connection) == [1]


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({"category": "MEMBR"}, "there is no category MEMBR, did you mean MEMBER"),
        ({"category": "MEMBER", "outbox": None}, "several outboxes fit, name one: region, uuid, text"),
        ({"outbox": "regoin"}, "there is no outbox regoin, did you mean region"),
        ({"outbox": "control"}, "MEMBER: outbox control needs a region_name"),
        ({"region_name": "eu"}, "MEMBER: outbox region takes no region_name"),
        ({"outbox": "control", "region_name": ""}, "MEMBER: region_name: is empty"),
        ({"shard_identifier": "1"}, "MEMBER: shard_identifier: '1' is no int, and the column is bigint"),
        ({"shard_identifier": True}, "shard_identifier: True is no int"),
        ({"object_identifier": 2**63}, f"object_identifier: {2**63} is beyond bigint"),
        ({"object_identifier": None}, "object_identifier: None is no int"),
        ({"outbox": "uuid", "shard_identifier": "x"}, "shard_identifier: 'x' is no uuid"),
        ({"outbox": "uuid", "shard_identifier": 1}, "shard_identifier: 1 is no uuid"),
        ({"outbox": "text", "shard_identifier": 1}, "shard_identifier: 1 is no str"),
        ({"outbox": "text", "shard_identifier": "a\0"}, "shard_identifier: PostgreSQL takes no NUL"),
        ({"outbox": "text", "shard_identifier": "\ud800"}, "surrogates not allowed"),
        ({"payload": {"a": float("nan")}}, "payload: Out of range float"),
        ({"payload": {"a": "\0"}}, "payload: PostgreSQL takes no NUL"),
        ({"payload": {"\ud800": 1}}, "surrogates not allowed"),
        ({"payload": object()}, "payload: object is nothing that JSON can hold"),
        ({"payload": {(1, 2): 3}}, "payload: keys must be str"),
        ({"headers": ["a"]}, "headers: list is no dict"),
    ],
)
async def test_a_message_that_breaks_a_rule_is_refused_and_none_is_written(
    producer: Producer, connection: asyncpg.Connection, wrong: dict[str, Any], said: str
) -> None:
    right: dict[str, Any] = {"category": "MEMBER", "shard_identifier": 1, "object_identifier": 1, "outbox": "region"}
    async with producer.context(connection) as outbox:
        with pytest.raises(errors.InvalidOutboxError) as refused:
            await outbox.save_many([member(5), NewMessage(**(right | wrong))])
        await outbox.save_many([member(6)])  # the transaction goes on

    assert said in str(refused.value)
    assert await objects(connection) == [6]


async def test_a_nested_list_without_end_is_refused(producer: Producer, connection: asyncpg.Connection) -> None:
    endless: list[Any] = []
    endless.append(endless)
    async with producer.context(connection) as outbox:
        with pytest.raises(errors.InvalidOutboxError, match="Circular"):
            await outbox.save_many([member(1, payload=endless)])


async def test_a_table_that_is_not_there_is_said(producer: Producer, connection: asyncpg.Connection) -> None:
    await connection.execute("DROP TABLE outbox")
    with pytest.raises(errors.SchemaError, match="there is no table outbox"):
        await save(producer, connection, member(1))


async def test_something_that_is_no_connection_is_refused(producer: Producer) -> None:
    with pytest.raises(errors.OutboxContextError, match=r"takes no builtins\.str"):
        producer.context("postgresql://")


async def test_a_context_is_used_once_and_saves_only_inside(producer: Producer, connection: asyncpg.Connection) -> None:
    context = producer.context(connection)
    with pytest.raises(errors.OutboxContextError, match="has ended"):
        await context.save_many([member(1)])
    async with context:
        await context.save_many([member(1)])
    with pytest.raises(errors.OutboxContextError, match="has ended"):
        await context.save_many([member(2)])
    with pytest.raises(errors.OutboxContextError, match="entered once"):
        async with context:
            pass
    async with producer.context() as without:
        with pytest.raises(errors.OutboxContextError, match="without a connection"):
            await without.save_many([member(3)])

    assert await objects(connection) == [1]


# --- nested -------------------------------------------------------------------------------------------------


async def test_an_inner_context_is_a_savepoint(producer: Producer, connection: asyncpg.Connection) -> None:
    async with producer.context(connection) as outer:
        await outer.save_many([member(1)])
        await save_in_vain(producer, connection, member(2))
        async with producer.context(connection) as inner:
            await inner.save_many([member(3)])
        await outer.save_many([member(4)])

    assert await objects(connection) == [1, 3, 4]


async def test_it_joins_the_application_s_own_transaction(producer: Producer, connection: asyncpg.Connection) -> None:
    transaction = connection.transaction()
    await transaction.start()
    await save(producer, connection, member(1))
    await transaction.rollback()

    assert await remaining(connection) == []


@pytest.mark.parametrize("outer", [None, False, True])
@pytest.mark.parametrize("inner", [None, False, True])
async def test_flush_is_inherited_and_an_inner_word_wins(
    database: str, connection: asyncpg.Connection, outer: bool | None, inner: bool | None
) -> None:
    seen = Recorder()
    async with producing(database, seen) as producer, producer.context(connection, flush=outer) as around:
        await around.save_many([member(1)])
        async with producer.context(connection, flush=inner) as within:
            await within.save_many([NewMessage(category="MEMBER", shard_identifier=2, object_identifier=2)])
        assert seen.messages == []  # nothing is committed yet

    expected = ([1] if outer else []) + ([2] if (outer if inner is None else inner) else [])
    assert seen.objects == expected


async def test_what_an_inner_context_rolled_back_is_not_flushed(database: str, connection: asyncpg.Connection) -> None:
    seen = Recorder()
    async with producing(database, seen) as producer, producer.context(connection, flush=False):
        await save_in_vain(producer, connection, member(1), flush=True)

    assert seen.messages == []


async def test_a_context_without_a_connection_says_flush_for_those_inside(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    async with producing(database, seen) as producer, producer.context(flush=False):
        await save(producer, connection, member(1))

    assert (seen.messages, await objects(connection)) == ([], [1])


async def test_a_second_connection_is_flushed_when_the_first_has_ended(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    async with (
        producing(database, seen) as producer,
        connected(database) as second,
        producer.context(connection, flush=True) as first,
    ):
        await first.save_many([member(1)])
        async with producer.context(second) as other:
            await other.save("MEMBER", shard_identifier=2, object_identifier=2)
        assert sorted(await objects(connection)) == [1, 2]
        assert seen.messages == []

    assert sorted(seen.objects) == [1, 2]


# --- what cannot be flushed ---------------------------------------------------------------------------------


async def test_flush_without_a_transaction_is_an_error(producer: Producer) -> None:
    with pytest.raises(errors.OutboxContextError, match="flush=True without a connection"):
        async with producer.context(flush=True):
            pass


async def test_flush_inside_an_open_transaction_is_an_error(producer: Producer, connection: asyncpg.Connection) -> None:
    async with connection.transaction():
        with pytest.raises(errors.OutboxContextError, match="inside an open transaction"):
            async with producer.context(connection, flush=True):
                pass
        async with producer.context(connection, flush=False):
            with pytest.raises(errors.OutboxContextError, match="inside an open transaction"):
                async with producer.context(connection, flush=True):
                    pass


async def test_flush_on_a_second_connection_inside_a_transaction_is_an_error(
    producer: Producer, database: str, connection: asyncpg.Connection
) -> None:
    async with connected(database) as second, producer.context(connection):
        with pytest.raises(errors.OutboxContextError, match="on a second connection"):
            async with producer.context(second, flush=True):
                pass


# --- without receivers --------------------------------------------------------------------------------------


async def test_without_receivers_flush_wakes_the_daemon_and_delivered_waits_for_it(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    config = configure(poll_interval_s=600.0)
    async with producing(database) as producer, draining(database, seen, config) as pipeline:
        await eventually(lambda: pipeline.branches[0].scheduler is not None and pipeline.branches[0].ready.is_set())
        async with producer.context(connection, flush=True) as outbox:
            await outbox.save("MEMBER", **MEMBER)
        await outbox.delivered(timeout_s=10.0)

        assert seen.objects == [2]


async def test_a_wake_up_is_part_of_the_transaction(
    producer: Producer, database: str, connection: asyncpg.Connection
) -> None:
    oid = await connection.fetchval("SELECT 'outbox'::regclass::oid::int8")
    heard: list[str] = []
    async with connected(database) as listener:
        await listener.add_listener(f"outboxd_{oid}", lambda *arguments: heard.append(arguments[2]))
        async with producer.context(connection, flush=False) as outbox:
            await outbox.save_many([member(1)])
        await save_in_vain(producer, connection, member(2), flush=True)
        await listener.execute("SELECT 1")
        assert heard == []
        async with producer.context(connection, flush=True) as outbox:
            await outbox.save_many([member(3), member(4)])
        await listener.execute("SELECT 1")
        assert heard == [f"outboxd_{oid}"]


async def test_a_wake_up_that_fails_rolls_back(
    producer: Producer, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fail(*_: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr(producer, "wake", fail)
    with pytest.raises(ZeroDivisionError):
        await save(producer, connection, member(1), flush=True)

    assert not connection.is_in_transaction()
    assert await remaining(connection) == []


async def test_delivered_gives_up(producer: Producer, connection: asyncpg.Connection) -> None:
    async with producer.context(connection, flush=True) as outbox:
        await outbox.save_many([member(1, payload="x"), member(2)])
        with pytest.raises(errors.OutboxContextError, match="inside the transaction"):
            await outbox.delivered(timeout_s=1)
    await connection.execute("DELETE FROM outbox WHERE object_identifier = 2")

    with pytest.raises(errors.OutboxFlushError, match=r"1 of 2 messages are not delivered after 0\.05 s") as late:
        await outbox.delivered(timeout_s=0.05)

    assert late.value.message is not None
    assert (late.value.message.object_identifier, late.value.message.payload) == (1, "x")


# --- connections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"statement_cache_size": 0}], ids=["prepared", "not prepared"])
async def test_connections_of_a_pool(producer: Producer, database: str, options: dict[str, Any]) -> None:
    async with asyncpg.create_pool(database, min_size=1, max_size=3, **options) as pool:

        async def work(number: int) -> None:
            async with pool.acquire() as lent, producer.context(lent) as outer:
                await outer.save_many([member(number)])
                async with producer.context(lent) as inner:
                    await inner.save_many([member(100 + number)])

        await asyncio.gather(*map(work, range(10)))
        async with pool.acquire() as lent:
            assert sorted(await objects(lent)) == [*range(10), *range(100, 110)]


async def test_contexts_of_other_tasks_do_not_matter(database: str) -> None:
    seen = Recorder()
    async with producing(database, seen) as producer:

        async def work(number: int, flush: bool) -> None:
            async with connected(database) as own, producer.context(own, flush=flush) as outbox:
                await outbox.save("MEMBER", shard_identifier=number, object_identifier=number)

        await asyncio.gather(*(work(number, number % 2 == 0) for number in range(6)))

    assert sorted(seen.objects) == [0, 2, 4]


async def test_a_cancelled_task_rolls_back(producer: Producer, connection: asyncpg.Connection) -> None:
    written = asyncio.Event()

    async def work() -> None:
        async with producer.context(connection, flush=True) as outbox:
            await outbox.save_many([member(1)])
            written.set()
            await asyncio.Event().wait()

    task = asyncio.create_task(work())
    await written.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task

    assert await remaining(connection) == []


async def test_a_context_that_ends_in_another_task_commits(producer: Producer, connection: asyncpg.Connection) -> None:
    """As fixtures and dependencies do that are generators."""

    async def generator() -> AsyncIterator[None]:
        async with producer.context(connection) as outbox:
            await outbox.save_many([member(1)])
            yield

    made = generator()

    async def step() -> bool:
        return await anext(made, True) is None

    assert await asyncio.create_task(step())
    assert not await asyncio.create_task(step())

    assert not connection.is_in_transaction()
    assert await objects(connection) == [1]


@pytest.mark.parametrize("same", [True, False], ids=["same connection", "another connection"])
@pytest.mark.parametrize("flush", [True, None])
async def test_a_context_that_has_ended_is_around_nobody(
    database: str, connection: asyncpg.Connection, same: bool, flush: bool | None
) -> None:
    seen = Recorder()
    ended = asyncio.Event()
    async with producing(database, seen) as producer, connected(database) as other:

        async def later() -> None:
            await ended.wait()
            await save(producer, connection if same else other, member(2), flush=flush)

        async with producer.context(connection, flush=True):
            task = asyncio.create_task(later())
            await asyncio.sleep(0)
        ended.set()
        await task

    assert seen.objects == ([2] if flush else [])


async def test_what_was_committed_inside_a_context_that_failed_is_flushed_with_the_outer_one(
    database: str, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    async with (
        producing(database, seen) as producer,
        connected(database) as second,
        producer.context(connection, flush=True),
    ):
        with contextlib.suppress(ZeroDivisionError):
            async with producer.context(connection) as inner:
                await inner.save_many([member(1)])
                await save(producer, second, NewMessage(category="MEMBER", shard_identifier=2, object_identifier=7))
                raise ZeroDivisionError

    assert seen.objects == [7]


@pytest.mark.parametrize("timeout_s", [0, -1, float("nan"), float("inf")])
async def test_a_timeout_that_is_none(producer: Producer, connection: asyncpg.Connection, timeout_s: float) -> None:
    with pytest.raises(errors.OutboxContextError, match="flush_timeout_s must be"):
        producer.context(connection, flush=True, flush_timeout_s=timeout_s)


@pytest.mark.parametrize("timeout_s", [-1, float("nan")])
async def test_delivered_with_a_timeout_that_is_none(
    producer: Producer, connection: asyncpg.Connection, timeout_s: float
) -> None:
    async with producer.context(connection) as outbox:
        await outbox.save_many([member(1)])

    with pytest.raises(errors.OutboxContextError, match="timeout_s must be"):
        await outbox.delivered(timeout_s)


async def test_the_default_is_what_use_says(producer: Producer, connection: asyncpg.Connection) -> None:
    use(producer)
    try:
        async with outbox_context(connection) as outbox:
            await outbox.save_many([member(1)])
    finally:
        use(None)

    assert await objects(connection) == [1]
