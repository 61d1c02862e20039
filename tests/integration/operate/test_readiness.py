"""When a pipeline is ready: judged by what its loops have done, within a window that is short here."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import pytest

from outboxd import claims, errors, readiness
from outboxd.options import Switches
from outboxd.pipeline import Pipeline
from outboxd.readiness import reasons
from tests.drains import (
    CONTROL,
    REGION,
    Gate,
    Recorder,
    build,
    configure,
    connected,
    draining,
    outboxd_backends,
    until_empty,
    write,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

WINDOW_S = 3.0
LOCK = "LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE"


@pytest.fixture(autouse=True)
def window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "WINDOW_S_MIN", WINDOW_S)
    monkeypatch.setattr(claims, "PING_INTERVAL_S", WINDOW_S / 20)


def ready(pipeline: Pipeline) -> bool:
    return reasons(pipeline) == []


def not_ready(pipeline: Pipeline, *words: str) -> bool:
    found = " ".join(reasons(pipeline))
    return bool(found) and all(word in found for word in words)


def a_window_later() -> float:
    """A point in time at which everything that was done until now is too old to count."""
    return time.monotonic() + 1.2 * WINDOW_S


async def test_a_pipeline_that_only_finds_nothing_is_ready_for_as_long_as_it_looks(database: str) -> None:
    async with draining(database, Recorder()) as pipeline:
        await eventually(lambda: ready(pipeline))
        enough = a_window_later()
        await eventually(lambda: time.monotonic() > enough)
        assert reasons(pipeline) == []


async def test_before_the_database_was_reached_it_says_so(database: str) -> None:
    config = configure()
    pipeline = Pipeline(config, build(config, Recorder()), lambda: database)

    assert not_ready(pipeline, "the database cannot be reached", "not migrated")


async def test_what_the_database_lacks_is_named_until_it_is_there(
    database: str, connection: asyncpg.Connection
) -> None:
    config = configure()
    pipeline = Pipeline(config, build(config, Recorder()), lambda: database)
    await connection.execute("ALTER TABLE outboxd.pause RENAME TO away")
    with pytest.raises(errors.SchemaError):
        await pipeline.open()
    assert not_ready(pipeline, "it waits", "outboxd.pause")

    await connection.execute("ALTER TABLE outboxd.away RENAME TO pause")
    await pipeline.open()
    try:
        assert not_ready(pipeline, "has not been found fit")
    finally:
        await pipeline.close()


async def test_an_outbox_that_was_never_looked_at_is_not_ready_just_after_boot(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The monotonic clock counts from the start of the machine: 0 is not long ago then."""
    async with draining(database, Recorder()) as pipeline:
        await eventually(lambda: ready(pipeline))
        finder = pipeline.branches[0].scheduler.finder  # type: ignore[union-attr]
        monkeypatch.setattr(finder, "looked_at", 0.0)
        monkeypatch.setattr(readiness, "WINDOW_S_MIN", float("inf"))

        assert not_ready(pipeline, "region", "not been looked at yet")


async def test_a_locked_table_ends_readiness_and_its_release_brings_it_back(
    database: str, connection: asyncpg.Connection
) -> None:
    async with draining(database, Recorder(), configure(REGION, CONTROL)) as pipeline:
        await eventually(lambda: ready(pipeline))
        async with connection.transaction():
            await connection.execute(LOCK)
            await eventually(lambda: not_ready(pipeline, "outbox region"))
            assert "control" not in " ".join(reasons(pipeline))
        await eventually(lambda: ready(pipeline))


async def test_a_missing_table_ends_readiness(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("ALTER TABLE outbox RENAME TO elsewhere")
    async with draining(database, Recorder()) as pipeline:
        assert not_ready(pipeline, "region", "fit to be drained")
        await connection.execute("ALTER TABLE elsewhere RENAME TO outbox")
        await eventually(lambda: ready(pipeline))


async def test_a_lost_claim_session_ends_readiness_until_there_is_another(
    database: str, connection: asyncpg.Connection
) -> None:
    async with draining(database, Recorder()) as pipeline:
        await eventually(lambda: ready(pipeline))
        [pid] = await outboxd_backends(connection, "claim")
        async with connection.transaction():
            await connection.execute("LOCK TABLE outboxd.worker IN ACCESS EXCLUSIVE MODE")  # nobody may register
            await connection.execute("SELECT pg_terminate_backend($1)", pid)
            await eventually(
                lambda: not_ready(pipeline, f"the claim session is lost: {pipeline.claims.lost_by or '?'}")
            )
        await eventually(lambda: ready(pipeline))


async def test_a_claim_session_that_does_not_answer_is_not_ready(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with draining(database, Recorder()) as pipeline:
        await eventually(lambda: ready(pipeline))
        monkeypatch.setattr(pipeline.claims, "answered_s_ago", lambda: 2 * WINDOW_S)

        assert not_ready(pipeline, "the database has not answered for 6 s")


async def test_a_receiver_inside_its_timeout_keeps_it_ready_however_long_nothing_else_happens(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    gate = Gate()
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        async with connected(database) as other, other.transaction():
            await other.execute(LOCK)  # no look finishes
            enough = a_window_later()
            await eventually(lambda: time.monotonic() > enough)
            assert reasons(pipeline) == []
        gate.opened.set()
        await until_empty(connection)


async def test_a_receiver_beyond_its_timeout_does_not(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)
    gate = Gate()
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        async with connected(database) as other, other.transaction():
            await other.execute(LOCK)
            for work in pipeline.live.deadlines:
                pipeline.live.deadlines[work] = time.monotonic() - 1
            await eventually(lambda: not_ready(pipeline, "no look for due shards"))
        gate.opened.set()
        await until_empty(connection)


async def test_an_outbox_that_only_waits_for_drainers_is_ready(database: str, connection: asyncpg.Connection) -> None:
    """One outbox's slow receivers have all the drainers; nothing is wrong with the other, and nothing is looked for."""
    gate = Gate()
    await write(connection)
    async with draining(database, gate, configure(REGION, CONTROL, concurrency=1)) as pipeline:
        await gate.closed_behind()
        for shard in range(10):
            await write(connection, shard=shard, table="control_outbox", region="eu")
        enough = a_window_later()
        await eventually(lambda: time.monotonic() > enough)
        assert pipeline.branches[1].scheduler is not None
        assert time.monotonic() - pipeline.branches[1].scheduler.finder.looked_at > WINDOW_S
        assert reasons(pipeline) == []
        gate.opened.set()
        await until_empty(connection, "control_outbox")


async def test_another_outbox_s_receiver_does_not_make_a_locked_one_ready(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    await write(connection, table="control_outbox", region="eu")
    async with draining(database, gate, configure(REGION, CONTROL)) as pipeline:
        await gate.closed_behind()
        async with connection.transaction():
            await connection.execute(LOCK)
            await eventually(lambda: not_ready(pipeline, "outbox region"))
        gate.opened.set()


async def test_what_is_switched_off_is_still_looked_at_and_ready(database: str, connection: asyncpg.Connection) -> None:
    async with draining(database, Recorder()) as pipeline:
        await eventually(lambda: ready(pipeline))
        pipeline.switchboard.now = pipeline.live.switches = Switches(outboxes=frozenset({"region"}))
        await write(connection)
        enough = a_window_later()
        await eventually(lambda: time.monotonic() > enough)
        assert reasons(pipeline) == []


async def test_a_pipeline_that_stops_is_not_ready(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)
    gate = Gate()
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        pipeline.stop()
        assert reasons(pipeline) == ["it is stopping"]
        gate.opened.set()


async def test_the_window_is_ten_polls_where_polls_are_rare(database: str, connection: asyncpg.Connection) -> None:
    async with draining(database, Recorder(), configure(poll_interval_s=1_000.0)) as pipeline:
        await eventually(lambda: ready(pipeline))
        async with connection.transaction():
            await connection.execute(LOCK)
            enough = a_window_later()
            await eventually(lambda: time.monotonic() > enough)
            assert reasons(pipeline) == []
