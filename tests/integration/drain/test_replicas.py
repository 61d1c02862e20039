"""Model receivers: what an object is now, read for many deliveries at once; or that it is gone."""

from __future__ import annotations

import asyncio
import datetime as dt
import sys
import types
from typing import TYPE_CHECKING, Any

import msgspec
import pytest
import structlog

from outboxd import errors, registry, replicates
from outboxd.config import Config, ModelConfig
from outboxd.load import Loaded
from outboxd.pipeline import Pipeline
from outboxd.producer import Producer
from outboxd.replicas import AHEAD
from tests.drains import (
    CONTROL,
    REGION,
    configure,
    connected,
    failures,
    make_due,
    outboxd_backends,
    remaining,
    until_empty,
    write,
    write_many,
)
from tests.integration.operate.roles import role

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import asyncpg

    from outboxd import Message
    from outboxd.config import OutboxConfig

TABLE = "CREATE TABLE member (id int PRIMARY KEY, slug text, at timestamptz DEFAULT '2026-01-02 03:04:05+00')"


def config_with(*outboxes: OutboxConfig, more: Sequence[dict[str, Any]] = (), **model: Any) -> Config:
    """A configuration with a model, and with more of them which differ as said."""
    given = {"table": "member", "outbox": "region", "category": "MEMBER", "shard_identifier": "id"}
    models = [msgspec.convert({**given, **each}, ModelConfig) for each in (model, *more)]
    return msgspec.structs.replace(configure(*outboxes), model=models)


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
    session = pipeline.branches[0].source_session
    assert session is not None
    looking = 5  # begin, what the table is made of, commit
    assert session.round_trips == looking + -(-250 // AHEAD)


async def test_whatever_the_columns_are_called(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE member (id int PRIMARY KEY, found int, kept int, member text, again text)")
    await connection.execute("INSERT INTO member VALUES (1, 2, 3, 'm', 'a'), (2, 2, 3, repeat('m', 20000), 'a')")
    for obj in (1, 2):
        await write(connection, obj=obj)
    made, seen = built(config_with())
    await drain(database, config_with(), made)
    assert seen[0] == (1, {"id": 1, "found": 2, "kept": 3, "member": "m", "again": "a"})
    assert (seen[1][1]["id"], len(seen[1][1]["member"]), seen[1][1]["again"]) == (2, 20_000, "a")


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


async def test_flushes_keep_their_session(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada')")
    config = msgspec.structs.replace(config_with(), dsn=database)
    made, seen = built(config)
    producer = Producer(Loaded(config), registry=made)
    pids = set()
    async with connected(database) as own:
        for _ in range(3):
            async with producer.context(own, flush=True) as outbox:
                await outbox.save("MEMBER", shard_identifier=1, object_identifier=1)
            pids |= set(await outboxd_backends(connection, "source"))
    await producer.close()

    assert (len(seen), len(pids)) == (3, 1)
    assert await outboxd_backends(connection) == []


async def test_rows_that_a_policy_hides_are_not_gone(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada')")
    await connection.execute("ALTER TABLE member ENABLE ROW LEVEL SECURITY")
    number = await write(connection, obj=1)
    async with role(connection, database) as (name, dsn):
        await connection.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public, outboxd TO {name}")
        await connection.execute(f"GRANT USAGE ON SCHEMA outboxd TO {name}")
        config = config_with(tombstones=True)
        made, seen = built(config)
        with structlog.testing.capture_logs() as logs:
            await drain(dsn, config, made)

    assert any("row level security hides rows" in str(entry.get("error")) for entry in logs)
    assert (seen, await remaining(connection)) == ([], [number])
    assert await connection.fetchval("SELECT count(*) FROM outboxd.tombstone") == 0


@pytest.mark.parametrize(
    ("column", "value"),
    [("at", "'4000-01-01 BC'"), ("slug", "'no number'")],
    ids=["the driver cannot hold it", "the model's condition fails on it"],
)
async def test_a_row_that_cannot_be_read_is_a_failure_and_touches_no_other(
    database: str, connection: asyncpg.Connection, column: str, value: str
) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, '1'), (2, '2'), (3, '3')")
    await connection.execute(f"UPDATE member SET {column} = {value} WHERE id = 2")
    for obj in (1, 2, 3):
        await write(connection, obj=obj, category="SKIPPING")
    config = config_with(category="SKIPPING", where_sql="slug::int > 0")
    made, seen = built(config)
    await drain(database, config, made)

    assert [number for number, _ in seen] == [1, 3]
    [failure] = await failures(connection)
    assert (failure["object_identifier"], failure["last_error"][:22]) == ("2", "reading rows of member")


async def test_a_table_that_changes_while_the_daemon_runs(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada')")
    config = config_with()
    made, seen = built(config)
    pipeline = Pipeline(config, made, lambda: database)
    await pipeline.open()
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(pipeline.run())
        for change in ("RENAME slug TO name", "ADD mood text", "DROP COLUMN at"):
            await write(connection, obj=1)
            await until_empty(connection)
            await connection.execute(f"ALTER TABLE member {change}")
        await write(connection, obj=1)
        await until_empty(connection)
        pipeline.stop()
        await running

    assert [sorted(row) for _, row in seen] == [
        ["at", "id", "slug"],
        ["at", "id", "name"],
        ["at", "id", "mood", "name"],
        ["id", "mood", "name"],
    ]


async def test_of_two_models_of_a_table_each_has_its_own_key_and_condition(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute(f"{TABLE}; ALTER TABLE member ADD seat int UNIQUE")
    await connection.execute("INSERT INTO member (id, slug, seat) VALUES (1, 'ada', 2), (2, 'bob', 1)")
    await write(connection, obj=1)
    await write(connection, obj=1, category="AUDIT")
    config = config_with(
        where_sql="slug = 'nobody'", more=[{"category": "AUDIT", "object_identifier": "seat", "shard_identifier": "id"}]
    )
    made, seen = built(config)
    await drain(database, config, made)

    assert [(number, row and row["slug"]) for number, row in seen] == [(1, None), (1, "bob")]


async def test_a_model_for_each_outbox_is_one_receiver(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) VALUES (1, 'ada')")
    await write(connection, obj=1)
    await write(connection, obj=1, table="control_outbox", region="eu")
    config = config_with(
        REGION, CONTROL, more=[{"outbox": "control", "where_sql": "slug = 'nobody'", "region_names": ["eu"]}]
    )
    made, seen = built(config)
    assert made.receiver_count == 1
    await drain(database, config, made)

    assert sorted((row is None) for _, row in seen) == [False, True]


async def test_one_hot_object_among_others_is_read_with_them(database: str, connection: asyncpg.Connection) -> None:
    """What was read ahead is kept: a message about the hot one must not have the others read again."""
    await connection.execute(f"{TABLE}; INSERT INTO member (id, slug) SELECT n, 'x' FROM generate_series(0, 99) n")
    for obj in range(1, 100):
        await write(connection, obj=0, category="AUDIT")
        await write(connection, obj=obj, category="AUDIT")
    config = config_with(category="AUDIT")
    made, seen = built(config)
    pipeline = await drain(database, config, made)

    session = pipeline.branches[0].source_session
    assert session is not None
    assert (len(seen), session.round_trips) == (198, 5 + 1)


def test_a_model_receiver_that_cannot_be_made_is_named() -> None:
    @replicates("member")
    class Needy:
        def __init__(self, client: object) -> None: ...

        async def handle_async_replication(self, row: object, message: object) -> None: ...

        async def handle_async_deletion(self, identifier: object, message: object) -> None: ...

    with pytest.raises(errors.ConfigError, match=r"Needy cannot be made without arguments: TypeError"):
        registry.build(config_with(), [Needy])


def test_models_that_nobody_could_tell_apart_are_refused() -> None:
    with pytest.raises(errors.ConfigError, match="nobody could tell which of them a message is about"):
        built(config_with(more=[{"object_identifier": "seat"}]))


def test_a_class_derived_from_a_receiver_is_none_itself() -> None:
    module = types.ModuleType("receivers")

    @replicates("member", "member")
    class Members:
        async def handle_async_replication(self, row: object, message: object) -> None: ...

        async def handle_async_deletion(self, identifier: object, message: object) -> None: ...

    class Others(Members): ...

    vars(module).update(Members=Members, Others=Others)
    sys.modules["receivers"] = module
    found = registry.load_receivers(["receivers"], None)
    del sys.modules["receivers"]
    assert found == [Members]
    assert registry.build(config_with(), found).receiver_count == 1


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
