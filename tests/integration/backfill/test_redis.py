"""Watermarks in Redis: their shape, and what happens when Redis goes away, forgets, or holds something else."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
from typing import TYPE_CHECKING, Any

import pytest
import structlog
from redis.asyncio import Redis

from outboxd.embedded import embedded_valkey
from outboxd.errors import ConfigError
from outboxd.pipeline import Pipeline
from outboxd.watermark import RedisWatermarks, State
from tests.drains import Recorder, build, outboxd_backends, until_empty, write
from tests.eventually import PATIENCE_S, eventually
from tests.walks import (
    create_members,
    let_a_minute_pass,
    model,
    objects,
    one_batch,
    progress_of,
    walk_to_the_end,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

KEY = "outbox_backfill.organizationmember"


@pytest.fixture
async def redis(valkey: str) -> AsyncIterator[Redis]:
    async with Redis.from_url(valkey, decode_responses=True) as client:
        await client.flushall()
        yield client


@contextlib.contextmanager
def logged(*names: str) -> Any:
    """Yield the log lines of these events, as they come."""
    lines: list[Any] = []

    def keep(_: Any, __: str, event: Any) -> Any:
        if event["event"] in names:
            lines.append(dict(event))
        return event

    before = structlog.get_config()["processors"]
    structlog.configure(processors=[keep, *before])
    try:
        yield lines
    finally:
        structlog.configure(processors=before)


async def test_the_value_is_low_bound_and_version(
    database: str, connection: asyncpg.Connection, valkey: str, redis: Redis
) -> None:
    await create_members(connection, 5)
    async with walking(database, with_models(state="redis"), valkey) as backfill:
        await backfill.look()
        assert await redis.keys() == [], "looking writes nothing"
        await one_batch(backfill, 3)
        assert await redis.get(KEY) == "[4,1]"
        await walk_to_the_end(backfill, connection)
        assert await redis.get(KEY) == "[0,2]"
        assert progress_of(backfill).condition == "finished"

    assert await objects(connection) == [1, 2, 3, 4, 5]
    assert await watermark(connection) is None
    assert await redis.ttl(KEY) == -1, "it must not expire"


async def test_a_walk_that_another_program_has_begun_is_gone_on_with(
    database: str, connection: asyncpg.Connection, valkey: str, redis: Redis
) -> None:
    await create_members(connection, 5)
    await redis.set(KEY, "[3, 2]")
    async with walking(database, with_models(model(replication_version=2), state="redis"), valkey) as backfill:
        await walk_to_the_end(backfill, connection)

    assert await objects(connection) == [3, 4, 5]
    assert await redis.get(KEY) == "[0,3]"


async def test_a_stale_walker_cannot_move_the_watermark_back(
    database: str, connection: asyncpg.Connection, valkey: str, redis: Redis
) -> None:
    """It reads the key, is held up, and meanwhile another one walks on."""
    await create_members(connection, 9)
    await redis.set(KEY, "[1, 1]")
    async with walking(database, with_models(state="redis"), valkey) as backfill:
        watermarks = backfill.watermarks
        assert isinstance(watermarks, RedisWatermarks)

        async def overtaken(_fetch: Any, before: State) -> tuple[str, State]:
            await redis.set(KEY, "[7, 1]")
            return "done", State("3", before.version)

        with logged("backfill.superseded") as lines:
            assert await watermarks.advance("organizationmember", overtaken) == "done"
        assert [line["key"] for line in lines] == [KEY]

    assert await redis.get(KEY) == "[7, 1]"


async def test_a_missing_key_does_not_overwrite_one_that_has_come_meanwhile(
    database: str, connection: asyncpg.Connection, valkey: str, redis: Redis
) -> None:
    async with walking(database, with_models(state="redis"), valkey) as backfill:

        async def overtaken(_fetch: Any, before: State) -> tuple[None, State]:
            assert before == State("0", 1)
            await redis.set(KEY, "[0, 2]")
            return None, State("3", 1)

        await backfill.watermarks.advance("organizationmember", overtaken)

    assert await redis.get(KEY) == "[0, 2]"


async def test_a_lost_key_is_counted_and_told_and_the_walk_begins_anew(
    database: str, connection: asyncpg.Connection, valkey: str, redis: Redis
) -> None:
    await create_members(connection, 5)
    config = with_models(state="redis", backfills_per_minute=3)
    async with walking(database, config, valkey) as backfill:
        await backfill.tick(paced=False)
        assert backfill.watermarks.missing == 1, "a table that was never seen has none either"
        await redis.delete(KEY)
        with logged("backfill.watermark_missing") as lines:
            for _ in range(3):
                assert not await backfill.tick(paced=False)
            assert lines == [], "nothing begins anew while nothing may be written"
            await let_a_minute_pass(connection)
            await walk_to_the_end(backfill, connection)
        assert [(line["table"], line["key"]) for line in lines] == [("organizationmember", KEY)]
        assert backfill.metrics().watermark_missing_total == 2

    assert await objects(connection) == [1, 1, 2, 2, 3, 3, 4, 5]


GARBAGE = ["garbage", "[1]", '["x", 1]', "[1.5, 1]", "", "\x00\xff", '{"low": 1}']


@pytest.mark.parametrize("value", GARBAGE)
async def test_garbage_stops_its_table_alone_and_the_error_names_the_key(
    database: str, connection: asyncpg.Connection, valkey: str, redis: Redis, value: str
) -> None:
    await create_members(connection, 3)
    await create_members(connection, 3, table="public.other")
    await redis.set(KEY, value.encode("latin-1"))
    config = with_models(model(), model(table="public.other"), state="redis")
    async with walking(database, config, valkey) as backfill:
        await backfill.tick(paced=False)
        if value:
            assert progress_of(backfill).condition == "broken"
            named = KEY if value != '["x", 1]' else "low bound 'x'"
            assert named in progress_of(backfill).error
            assert backfill.metrics().watermark_errors_total == 1
        assert progress_of(backfill, "public.other").condition == "finished"

        await redis.set(KEY, "[3, 1]")
        backfill.walkers[0]._retry_at = backfill.walkers[1]._retry_at = 0.0
        await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "finished"


async def test_a_key_of_another_type_stops_its_table_alone(
    database: str, connection: asyncpg.Connection, valkey: str, redis: Redis
) -> None:
    await create_members(connection, 3)
    await create_members(connection, 3, table="public.other")
    await redis.lpush(KEY, "1")
    config = with_models(model(), model(table="public.other"), state="redis")
    async with walking(database, config, valkey) as backfill:
        await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "broken"
        assert KEY in progress_of(backfill).error
        assert progress_of(backfill, "public.other").condition == "finished"


@contextlib.asynccontextmanager
async def daemon(dsn: str, redis_url: list[str], seen: Recorder) -> AsyncIterator[Pipeline]:
    """Run everything that the daemon runs; where Redis is may change."""
    config = with_models(state="redis", backfills_per_minute=600)
    pipeline = Pipeline(config, build(config, seen), lambda: dsn, redis_url=lambda: redis_url[0], backfills=True)
    await pipeline.open()
    running = asyncio.create_task(pipeline.run())
    try:
        yield pipeline
    finally:
        pipeline.stop()
        async with asyncio.timeout(PATIENCE_S):
            await running


async def test_redis_dies_in_mid_walk_and_comes_back(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One line says so, the drain goes on, and the walk too when Redis is back."""
    monkeypatch.setattr("outboxd.backfill.TICK_S", 0.05)
    monkeypatch.setattr("outboxd.budget.Pace.allowance", lambda *_: 10)
    await create_members(connection, 200)
    seen, url = Recorder(), [""]
    async with contextlib.AsyncExitStack() as first:
        url[0] = await first.enter_async_context(embedded_valkey())
        with logged("backfill.unavailable", "backfill.resumed") as lines:
            async with daemon(database, url, seen) as pipeline:
                assert pipeline.backfill is not None
                progress = progress_of(pipeline.backfill)
                await eventually(lambda: progress.rows > 30)
                async with Redis.from_url(url[0]) as client:
                    os.kill((await client.info("server"))["process_id"], signal.SIGKILL)
                await eventually(lambda: lines)
                stopped_at = progress.rows
                await write(connection, shard=7, obj=4711)
                await eventually(lambda: 4711 in seen.objects)
                assert pipeline.backfill.metrics().backfilled_total == {"organizationmember": stopped_at}
                assert [line["event"] for line in lines] == ["backfill.unavailable"]
                assert "redis at unix://" in lines[0]["error"]

                async with embedded_valkey() as url[0], Redis.from_url(url[0]) as again:
                    await again.set(KEY, f"[{stopped_at + 1}, 1]")
                    await eventually(lambda: progress.condition == "finished")
                    assert await again.get(KEY) == b"[0,2]"
                    await until_empty(connection)
                    assert [line["event"] for line in lines] == ["backfill.unavailable", "backfill.resumed"]

    assert set(seen.objects) == {*range(1, 201), 4711}
    assert await outboxd_backends(connection) == []


async def test_a_redis_that_cannot_be_written_gets_no_batch_written_twice(
    database: str, connection: asyncpg.Connection, valkey: str, redis: Redis
) -> None:
    await create_members(connection, 30)
    async with walking(database, with_models(state="redis", backfills_per_minute=10), valkey) as backfill:
        await backfill.tick(paced=False)
        await redis.config_set("min-replicas-to-write", 1)
        try:
            for _ in range(3):
                await let_a_minute_pass(connection)
                assert not await backfill.tick(paced=False)
            assert "NOREPLICAS" in backfill.unavailable
        finally:
            await redis.config_set("min-replicas-to-write", 0)
        await let_a_minute_pass(connection)
        await walk_to_the_end(backfill, connection)

    assert await objects(connection) == list(range(1, 31))


@pytest.mark.parametrize(
    "url", ["redis://:sec/ret@localhost:6379/0", "redis://:sec#ret@localhost/0?x=1", "redis://localhost:1/0?nope=1"]
)
async def test_a_url_that_cannot_be_used_is_a_wrong_configuration_and_shows_nothing_of_itself(
    database: str, connection: asyncpg.Connection, url: str
) -> None:
    await create_members(connection, 3)
    with pytest.raises(ConfigError) as caught:
        async with walking(database, with_models(state="redis"), url) as backfill:
            await backfill.look()

    assert "redis_url" in str(caught.value)
    assert "sec" not in str(caught.value)
