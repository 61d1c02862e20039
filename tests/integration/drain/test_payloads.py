"""What a message may hold: any JSON, any size, any key type; memory is bounded (I10)."""

from __future__ import annotations

import json
import tracemalloc
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from tests.drains import (
    CONTROL,
    TEXT,
    UUID,
    Recorder,
    configure,
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

    from outboxd.config import OutboxConfig
    from outboxd.model import Message

MIB = 1024 * 1024


@pytest.mark.parametrize(
    "payload",
    [
        {},
        [],
        "",
        0,
        False,
        {"a": [1, 2.5, None, True, {"b": "c"}]},
        {"": "", " ": "\t\r\n"},
        "\U0001f984 \u202e\u2066 \ufeff \ufffe \uffff \U0010ffff e\u0301 \x7f\x1f",
        {"\U0001f600": ["\u0001", "\\u0000", '"', "\\", "</script>"]},
        2**63,
        -(2**64),
        10**400,
        123456.789,
        5e-324,
        "x" * 20_000,
        list(range(5_000)),
        {"repeated": "0" * 200_000},
    ],
    ids=lambda payload: repr(payload)[:24],
)
async def test_a_payload_arrives_as_it_was_written(database: str, connection: asyncpg.Connection, payload: Any) -> None:
    await write(connection, payload=payload)
    seen = Recorder()

    await drain_once(database, seen)

    assert [message.payload for message in seen.messages] == [payload]
    assert await remaining(connection) == []


@pytest.mark.parametrize("text", ["null", None])
async def test_no_payload_and_json_null_are_none(
    database: str, connection: asyncpg.Connection, text: str | None
) -> None:
    await write(connection)
    await connection.execute("UPDATE outbox SET payload = $1, headers = $1", text)
    seen = Recorder()

    await drain_once(database, seen)

    assert [(message.payload, message.headers) for message in seen.messages] == [(None, None)]


AWKWARD = {
    "a number beyond a float": "1e400",
    "a number of 130 000 digits": "1e130000",
    "a negative number of 10 000 digits": "-1e10000",
    "a very small number": "1e-4000",
    "deep nesting": "[" * 4_000 + "]" * 4_000,
    "deep nesting of objects": '{"a":' * 3_000 + "1" + "}" * 3_000,
}


@pytest.mark.parametrize("column", ["payload", "headers"])
@pytest.mark.parametrize("text", AWKWARD.values(), ids=AWKWARD)
async def test_json_that_python_can_hardly_hold_never_stops_the_drain(
    database: str, connection: asyncpg.Connection, column: str, text: str
) -> None:
    """Whether it can be parsed or not: the other shards are delivered, and it is delivered or stays as a failure."""
    awkward = await write(connection, shard=1)
    await connection.execute(f"UPDATE outbox SET {column} = $1::text::jsonb", text)
    seen = Recorder()
    async with draining(database, seen, configure(concurrency=1)) as pipeline:
        for shard in (2, 3):
            await write(connection, shard=shard)
        await eventually(lambda: {2, 3} <= set(seen.shards))
        await eventually(lambda: pipeline.totals()["delivered"] + pipeline.totals()["failures"] == 3)

    if awkward in seen.ids:
        assert await remaining(connection) == []
    else:
        assert await remaining(connection) == [awkward]
        [failure] = await failures(connection)
        assert failure["last_error"]


async def test_a_payload_of_50_mb_is_delivered(database: str, connection: asyncpg.Connection) -> None:
    sizes: list[int] = []

    async def measure(message: Message) -> None:
        sizes.append(len(message.payload["text"]))

    await write(connection, payload={"text": "x"})
    await connection.execute(
        "UPDATE outbox SET payload = jsonb_build_object('text', repeat(md5('seed'), 1024 * 1024 * 50 / 32))"
    )
    await drain_once(database, {"MEMBER": measure})

    assert sizes == [50 * MIB]
    assert await remaining(connection) == []


@pytest.mark.parametrize("storage", ["extended", "external", "main"])
async def test_large_payloads_are_not_held_in_memory_before_their_delivery(
    database: str, connection: asyncpg.Connection, storage: str
) -> None:
    """Stored small or large, compressed or not: with one delivery at a time there is one payload at a time."""
    await connection.execute(f"ALTER TABLE outbox ALTER payload SET STORAGE {storage}")
    await write_many(connection, 100)
    # Compressed, it is stored in less than the 8 kB up to which payloads are read ahead.
    await connection.execute("UPDATE outbox SET payload = to_jsonb(repeat('0123456789abcdef', 400 * 1024 / 16))")
    peaks: list[int] = []

    async def measure(message: Message) -> None:
        assert len(message.payload) == 400 * 1024
        peaks.append(tracemalloc.get_traced_memory()[0])

    tracemalloc.start()
    try:
        await drain_once(database, {"MEMBER": measure}, configure(concurrency=1))
    finally:
        tracemalloc.stop()

    assert len(peaks) == 100
    assert max(peaks) < 15 * MIB


async def test_only_the_newest_payload_of_a_group_is_delivered_however_large(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, payload="a" * 20_000)
    await write(connection, payload="b" * 30_000)
    await write(connection, payload="small")
    seen = Recorder()

    await drain_once(database, seen)

    assert [message.payload for message in seen.messages] == ["small"]


async def test_a_large_payload_of_a_failed_message_is_delivered_by_the_retry(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, payload="x" * 100_000)
    await drain_once(database, Recorder(failing()))
    await make_due(connection)
    seen = Recorder()

    await drain_once(database, seen)

    assert [len(message.payload) for message in seen.messages] == [100_000]


async def test_a_table_without_headers_is_drained(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("ALTER TABLE outbox DROP COLUMN headers")
    await write(connection, obj=1)
    await write(connection, obj=2)
    seen = Recorder(failing(2))

    await drain_once(database, seen)

    assert [message.headers for message in seen.messages] == [None, None]
    assert len(await remaining(connection)) == 1


async def test_a_message_without_headers_can_be_buried_from_a_table_without_them(
    database: str, connection: asyncpg.Connection
) -> None:
    from outboxd.errors import Discard

    await connection.execute("ALTER TABLE outbox DROP COLUMN headers")
    await write(connection)

    await drain_once(database, Recorder(failing(error=Discard("no"))))

    assert await connection.fetchval("SELECT headers FROM outboxd.dead_letter") is None
    assert await connection.fetchval("SELECT count(*) FROM outboxd.dead_letter") == 1


KEYS: dict[str, tuple[OutboxConfig, str | None, list[Any]]] = {
    "bigint": (configure().outbox[0], None, [-(2**63), -1, 0, 2**63 - 1]),
    "uuid": (UUID, None, [uuid.UUID(int=0), uuid.UUID(int=1), uuid.UUID(int=2**128 - 1)]),
    "text": (TEXT, None, ["", " ", "0", "a/b", "O'Brien", "\U0001f984", "x" * 500]),
    "control": (CONTROL, "eu-west", [-(2**63), 1, 2**63 - 1]),
    "control with an empty region": (CONTROL, "", [1]),
}


@pytest.mark.parametrize(("outbox", "region", "keys"), KEYS.values(), ids=KEYS)
async def test_every_key_type_is_delivered_fails_and_is_delivered_again(
    database: str, connection: asyncpg.Connection, outbox: OutboxConfig, region: str | None, keys: list[Any]
) -> None:
    for key in keys:
        await write(connection, shard=key, obj=key, table=outbox.table, region=region)
    config = configure(outbox)
    failed = Recorder(failing())

    await drain_once(database, failed, config)

    assert sorted(failed.shards) == sorted(keys)
    assert {message.region_name for message in failed.messages} == {region}
    assert len(await failures(connection)) == len(keys)
    await make_due(connection, outbox.table)
    seen = Recorder()
    await drain_once(database, seen, config)
    assert sorted(seen.objects) == sorted(keys)
    assert {message.attempt for message in seen.messages} == {2}
    assert await failures(connection) == []
    assert await remaining(connection, outbox.table) == []


async def test_the_same_shard_of_two_regions_is_two_shards(database: str, connection: asyncpg.Connection) -> None:
    for region in ("eu", "us"):
        await write(connection, table="control_outbox", region=region)

    def fail_in_europe(message: Message) -> None:
        if message.region_name == "eu":
            raise ValueError

    await drain_once(database, Recorder(fail_in_europe), configure(CONTROL))

    assert [row[0] for row in await connection.fetch("SELECT region_name FROM control_outbox")] == ["eu"]
    assert [failure["region_name"] for failure in await failures(connection)] == ["eu"]


async def test_smaller_integer_types_and_varchar_are_drained(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(
        "ALTER TABLE outbox ALTER shard_scope TYPE smallint, ALTER shard_identifier TYPE integer,"
        " ALTER category TYPE smallint, ALTER object_identifier TYPE varchar(20), ALTER id TYPE integer"
    )
    await write(connection, obj="seven")
    await drain_once(database, Recorder(failing()))
    assert [failure["object_identifier"] for failure in await failures(connection)] == ["seven"]
    await make_due(connection)
    seen = Recorder()

    await drain_once(database, seen)

    assert [(m.shard_identifier, m.object_identifier) for m in seen.messages] == [(1, "seven")]
    assert await remaining(connection) == []


async def test_a_payload_is_plain_data(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, payload={"n": 1.0, "big": 12345678901234567890})
    seen = Recorder()

    await drain_once(database, seen)

    assert json.dumps(seen.messages[0].payload, sort_keys=True) == '{"big": 12345678901234567890, "n": 1.0}'
