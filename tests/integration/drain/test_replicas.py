"""Model receivers: what an object is now, read for many deliveries at once; or that it is gone."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from outboxd import errors, registry, replicates
from outboxd.config import Config, ModelConfig
from outboxd.load import Loaded
from outboxd.pipeline import Pipeline
from outboxd.producer import Producer
from outboxd.replicas import AHEAD
from tests.drains import configure, connected, failures, make_due, remaining, write, write_many

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from outboxd import Message

TABLE = "CREATE TABLE member (id int PRIMARY KEY, slug text, at timestamptz DEFAULT '2026-01-02 03:04:05+00')"


def config_with(**model: Any) -> Config:
    given = {"table": "member", "outbox": "region", "category": "MEMBER", "shard_identifier": "id", **model}
    return msgspec.structs.replace(configure(), model=[msgspec.convert(given, ModelConfig)])


def built(config: Config, fails: set[int] | None = None) -> tuple[registry.Registry, list[Any]]:
    """A registry with one model receiver, and the list of what it is given."""
    seen: list[Any] = []

    @replicates("member")
    class Members:
        async def handle_async_replication(self, row: Mapping[str, Any], message: Message) -> None:
            if message.object_identifier in (fails or ()):
                raise ValueError("not this one")
            seen.append((message.object_identifier, dict(row)))

        async def handle_async_deletion(self, identifier: Any, message: Message) -> None:
            seen.append((identifier, None))

    return registry.build(config, [Members]), seen


async def drain(dsn: str, config: Config, made: registry.Registry) -> Pipeline:
    pipeline = Pipeline(config, made, lambda: dsn, bounded=True)
    await pipeline.open()
    await pipeline.run()
    return pipeline


async def test_objects_that_are_there_and_objects_that_are_gone(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada')")
    await write(connection, obj=1)
    await write(connection, obj=2)
    config = config_with()
    made, seen = built(config)
    await drain(database, config, made)

    at = dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)
    assert seen == [(1, {"id": 1, "slug": "ada", "at": at}), (2, None)]
    assert await remaining(connection) == []


async def test_rows_of_many_deliveries_are_read_by_one_statement(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) SELECT n, 'x' FROM generate_series(0, 249) n")
    await write_many(connection, 250)
    config = config_with()
    made, seen = built(config)
    pipeline = await drain(database, config, made)

    assert [number for number, _ in seen] == list(range(250))
    assert all(row is not None for _, row in seen)
    sources = pipeline.branches[0].sources
    assert sources is not None
    looking = 5  # begin, what the table is made of, commit
    assert sources.round_trips == looking + -(-250 // AHEAD)


async def test_what_the_model_leaves_out_is_gone(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada'), (2, NULL)")
    await write(connection, obj=1)
    await write(connection, obj=2)
    config = config_with(where_sql="member.slug IS NOT NULL -- those that are somebody")
    made, seen = built(config)
    await drain(database, config, made)
    assert [(number, row is None) for number, row in seen] == [(1, False), (2, True)]


async def test_tombstones(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada')")
    for obj in (1, 2, 3, 2):
        await write(connection, obj=obj, category="AUDIT")
    config = config_with(tombstones=True, category="AUDIT")
    made, seen = built(config)
    await drain(database, config, made)

    assert [number for number, row in seen if row is None] == [2, 3, 2]
    rows = await connection.fetch("SELECT table_name, object_identifier FROM outboxd.tombstone ORDER BY 2")
    assert [tuple(row) for row in rows] == [("member", "2"), ("member", "3")]


async def test_large_rows(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; ALTER TABLE member ALTER slug SET STORAGE EXTERNAL")
    await connection.execute("INSERT INTO member (id, slug) VALUES (1, repeat('x', 20000)), (2, 'small')")
    await write(connection, obj=1)
    await write(connection, obj=2)
    config = config_with()
    made, seen = built(config)
    await drain(database, config, made)
    assert [(number, len(row["slug"])) for number, row in seen] == [(1, 20000), (2, 5)]


async def test_what_it_raises_is_a_failure_and_the_next_try_reads_anew(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada')")
    await write(connection, obj=1)
    config = config_with()
    made, seen = built(config, fails={1})
    await drain(database, config, made)
    [failure] = await failures(connection)
    assert "Members raised ValueError: not this one" in failure["last_error"]
    assert seen == []

    await connection.execute("UPDATE member SET slug = 'grace'")
    await make_due(connection)
    made, seen = built(config)
    await drain(database, config, made)
    assert [row["slug"] for _, row in seen] == ["grace"]


@pytest.mark.parametrize(
    "table",
    ["SELECT 1", "CREATE TABLE member (id int, slug text)", "CREATE VIEW member AS SELECT 1 AS id"],
)
async def test_a_table_that_cannot_be_read_is_no_failure_of_the_message(
    database: str, connection: asyncpg.Connection, table: str, caplog: pytest.LogCaptureFixture
) -> None:
    await connection.execute(table)
    number = await write(connection, obj=1)
    config = config_with()
    made, seen = built(config)
    await drain(database, config, made)

    assert (seen, await remaining(connection), await failures(connection)) == ([], [number], [])


async def test_it_is_flushed_too(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada')")
    config = msgspec.structs.replace(config_with(), dsn=database)
    made, seen = built(config)
    producer = Producer(Loaded(config), registry=made)
    async with connected(database) as own, producer.context(own, flush=True) as outbox:
        await own.execute("UPDATE member SET slug = 'grace'")
        await outbox.save("MEMBER", shard_identifier=1, object_identifier=1)
    await producer.close()

    assert [row["slug"] for _, row in seen] == ["grace"]


def test_what_a_model_receiver_must_have() -> None:
    class Half:
        async def handle_async_replication(self, row: object, message: object) -> None: ...

    with pytest.raises(TypeError, match="has no `async def handle_async_deletion`"):
        replicates("member")(Half)
    with pytest.raises(TypeError, match="needs the name of a source table"):
        replicates()


def test_a_table_that_is_no_model_is_refused() -> None:
    config = config_with(table="person")
    with pytest.raises(errors.ConfigError, match=r"Members replicates member, which is no \[\[model\]\]"):
        built(config)
