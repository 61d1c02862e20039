"""`drain`: one shard, with the daemon's own pipeline and lock, and nothing else touched."""

from __future__ import annotations

import asyncio
import os
import signal
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from outboxd import acts, errors, load
from outboxd import drain_one as drain_module
from outboxd.claims import SHARD_CLASS
from outboxd.drain_one import Asked, Result, drain_one
from outboxd.inspection import inspect_table
from outboxd.pipeline import Pipeline
from tests.drains import (
    CONTROL,
    REGION,
    STANDARD,
    TEXT,
    UNKNOWN_CATEGORY,
    UUID,
    Gate,
    Recorder,
    build,
    connected,
    drain_once,
    draining,
    failing,
    failures,
    remaining,
    shard_locks,
    with_drain,
    write,
)
from tests.eventually import PATIENCE_S, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.model import Message
    from tests.drains import Receivers


@pytest.fixture(autouse=True)
async def _signals_are_given_back() -> AsyncIterator[None]:
    yield
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        asyncio.get_running_loop().remove_signal_handler(number)


def loaded(dsn: str, config: Config = STANDARD) -> load.Loaded:
    return load.Loaded(config=msgspec.structs.replace(config, dsn=dsn))


async def drain(
    dsn: str,
    receivers: Receivers,
    shard: Any = 1,
    *,
    outbox: OutboxConfig = REGION,
    region: str | None = None,
    config: Config = STANDARD,
) -> Result:
    asked = Asked(outbox, 0, str(shard), region)
    async with asyncio.timeout(PATIENCE_S):
        return await drain_one(loaded(dsn, config), build(config, receivers), asked)


async def test_the_shard_is_drained_and_no_other(database: str, connection: asyncpg.Connection) -> None:
    mine = [await write(connection, shard=1, obj=obj) for obj in (1, 2, 1)]
    other = await write(connection, shard=2)
    seen = Recorder()

    result = await drain(database, seen)

    assert seen.ids == [mine[2], mine[1]]
    assert (result.messages, result.delivered, result.coalesced, result.remaining) == (3, 2, 1, 0)
    assert (result.failed, result.failures, result.stopped, result.exit_code) == (0, [], None, 0)
    assert await remaining(connection) == [other]
    assert await connection.fetchval("SELECT count(*) FROM outboxd.worker") == 0
    assert await shard_locks(connection) == 0


async def test_what_is_in_backoff_or_scheduled_ahead_is_tried_now(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, obj=1)
    await drain_once(database, Recorder(failing()))
    await write(connection, obj=2, due_in_s=3_600)
    seen = Recorder()

    result = await drain(database, seen)

    assert (seen.objects, result.exit_code) == ([1, 2], 0)
    assert await failures(connection) == []


async def test_a_shard_of_another_outbox_is_not_touched(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, table="control_outbox", region="eu")
    stays = await write(connection, table="control_outbox", region="us")
    same_key = await write(connection)

    result = await drain(database, Recorder(), outbox=CONTROL, region="eu")

    assert (result.outbox, result.region, result.delivered) == ("control", "eu", 1)
    assert await remaining(connection, "control_outbox") == [stays]
    assert await remaining(connection) == [same_key]


@pytest.mark.parametrize(
    ("outbox", "table", "shard"),
    [(UUID, "uuid_outbox", "0d8f6c2e-3a51-4d0a-9f3e-0123456789ab"), (TEXT, "text_outbox", "a/b 'c'")],
    ids=["uuid", "text"],
)
async def test_keys_of_every_type(
    database: str, connection: asyncpg.Connection, outbox: OutboxConfig, table: str, shard: str
) -> None:
    await write(connection, shard=shard, obj=shard, table=table)

    result = await drain(database, Recorder(), shard.upper() if outbox is UUID else shard, outbox=outbox)

    assert (result.shard, result.delivered, result.remaining) == (shard, 1, 0)


async def test_a_failure_is_counted_and_told_with_its_error(database: str, connection: asyncpg.Connection) -> None:
    first = await write(connection, obj=1)
    await drain_once(database, Recorder(failing()))
    await write(connection, obj=2)
    seen = Recorder(failing(1))

    result = await drain(database, seen)

    assert seen.objects == [1], "tried once"
    assert (result.failed, result.remaining, result.exit_code) == (1, 2, 1)
    [failure] = result.failures
    assert (failure.category, failure.object, failure.message, failure.attempts) == ("MEMBER", "1", first, 2)
    assert "object 1 is broken" in failure.error
    assert failure.next_in_s > 0


async def test_an_empty_shard_is_no_error(database: str) -> None:
    result = await drain(database, Recorder(), 404)

    assert (result.messages, result.delivered, result.exit_code) == (0, 0, 0)


async def test_an_unknown_category_fails_as_ever(database: str, connection: asyncpg.Connection) -> None:
    await write(connection, category=UNKNOWN_CATEGORY)

    result = await drain(database, Recorder())

    assert (result.failed, result.failures[0].category, result.exit_code) == (1, str(UNKNOWN_CATEGORY), 1)


async def test_a_burial_is_no_failure(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)

    result = await drain(database, Recorder(failing(error=errors.Discard("no"))))

    assert (result.buried, result.failed, result.remaining, result.exit_code) == (1, 0, 0, 0)


PAUSES = {
    "shard": "INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier, reason, author, expires_at)"
    " VALUES ('shard', 0, '1', 'endpoint down', 'ada', '2100-01-02 03:04:05+00')",
    "outbox": "INSERT INTO outboxd.pause (kind, outbox, reason, author) VALUES ('outbox', 'region', 'moving', 'ada')",
    "shards option": "INSERT INTO outboxd.option (key, value, reason, updated_by)"
    " VALUES ('outbox.disabled_shards.ORGANIZATION_SCOPE', '[\"1\"]', 'too loud', 'ada')",
    "outboxes option": "INSERT INTO outboxd.option (key, value, reason, updated_by)"
    " VALUES ('outbox.disabled_outboxes', '[\"region\"]', 'too loud', 'ada')",
}
TOLD = {
    "shard": ["shard ORGANIZATION_SCOPE 1: pause 1 by ada, until 2100-01-02", "endpoint down", "`outboxd resume 1`"],
    "outbox": ["outbox region: pause 1 by ada: moving", "`outboxd resume 1`"],
    "shards option": ["option outbox.disabled_shards.ORGANIZATION_SCOPE by ada: too loud", "`outboxd options set"],
    "outboxes option": ["option outbox.disabled_outboxes by ada: too loud", "`outboxd options set"],
}


@pytest.mark.parametrize("kind", PAUSES)
async def test_what_is_switched_off_is_refused_with_who_and_why_and_how_to_end_it(
    database: str, connection: asyncpg.Connection, kind: str
) -> None:
    await connection.execute(PAUSES[kind])
    await write(connection, due_in_s=3_600)
    before = await connection.fetch("SELECT * FROM outbox")

    with pytest.raises(errors.ActRefused) as raised:
        await drain(database, Recorder())

    assert all(words in f"{raised.value} {raised.value.hint}" for words in TOLD[kind]), (
        raised.value,
        raised.value.hint,
    )
    assert await connection.fetch("SELECT * FROM outbox") == before
    assert await connection.fetchval("SELECT count(*) FROM outboxd.worker") == 0


async def test_what_is_switched_off_while_it_waits_for_a_lock_is_refused_too(
    database: str, connection: asyncpg.Connection
) -> None:
    stays = await write(connection, due_in_s=3_600)
    seen = Recorder()
    async with connected(database) as other:
        holding = other.transaction()
        await holding.start()
        await other.execute("SELECT FROM outbox FOR UPDATE")
        drained = asyncio.create_task(drain(database, seen))
        waiting = (
            "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() AND wait_event_type = 'Lock'"
        )
        await eventually(lambda: connection.fetchval(waiting))
        await connection.execute(PAUSES["shard"])
        await holding.rollback()

        with pytest.raises(errors.ActRefused, match="pause 1 by ada"):
            await drained

    assert (seen.messages, await remaining(connection)) == ([], [stays])


async def test_a_category_that_is_switched_off_stays_and_is_named(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO outboxd.pause (kind, category) VALUES ('category', 2), ('category', 3)")
    stays = await write(connection, category="TEAM")
    await write(connection, category="MEMBER", obj=2)

    result = await drain(database, Recorder())

    assert (result.delivered, result.remaining, result.categories_off, result.exit_code) == (1, 1, ["TEAM"], 0)
    assert result.stopped is None, "it was off all along"
    assert await remaining(connection) == [stays]


async def test_a_category_that_is_switched_off_meanwhile_is_why_it_ended(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipelines: list[Pipeline] = []

    class Watched(Pipeline):
        async def open(self) -> None:
            pipelines.append(self)
            await super().open()

    async def switch_off(_: Message) -> None:
        await connection.execute("INSERT INTO outboxd.pause (kind, category) VALUES ('category', 2)")
        await pipelines[0].refresh()

    monkeypatch.setattr(drain_module, "Pipeline", Watched)
    await write(connection, category="MEMBER")
    stays = await write(connection, category="TEAM", obj=2)

    result = await drain(database, switch_off)

    assert (result.delivered, result.stopped, result.categories_off) == (1, "switched off", ["TEAM"])
    assert await remaining(connection) == [stays]


async def test_a_shard_whose_categories_are_all_switched_off_is_refused(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("INSERT INTO outboxd.pause (kind, category) VALUES ('category', 2), ('category', 3)")
    await write(connection, category="TEAM", due_in_s=3_600)
    before = await connection.fetch("SELECT * FROM outbox")

    with pytest.raises(errors.ActRefused, match="all that is in the shard is switched off") as raised:
        await drain(database, Recorder())

    assert "category TEAM" in str(raised.value)
    assert raised.value.hint == "To end that: `outboxd resume 1`."
    assert await connection.fetch("SELECT * FROM outbox") == before


async def test_a_shard_that_a_daemon_drains_is_left_to_it_and_the_daemon_named(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "PATIENCE_S", 0.0)
    await write(connection)
    gate, here = Gate(), Recorder()
    async with draining(database, gate, STANDARD):
        await gate.closed_behind()
        before = await connection.fetch("SELECT * FROM outbox")
        with pytest.raises(errors.ActRefused, match=rf"drained by the outboxd with pid {os.getpid()} on "):
            await drain(database, here)
        assert await connection.fetch("SELECT * FROM outbox") == before
        gate.opened.set()
    assert here.messages == []


async def test_a_session_that_is_no_daemon_is_named_too(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "PATIENCE_S", 0.0)
    await connection.execute("SET application_name = 'psql of ada'")
    async with connected(database) as other:
        table = await inspect_table(other, REGION)
        key = await acts.lock_key(other, STANDARD, table, (0, 1))
    await connection.execute("SELECT pg_advisory_lock($1::int4, $2::int4)", SHARD_CLASS, key)

    with pytest.raises(errors.ActRefused, match="psql of ada"):
        await drain(database, Recorder())


async def test_nobody_comes_between_two_turns(database: str, connection: asyncpg.Connection) -> None:
    """The lock is held from the first delivery to the last, though every message is a turn of its own."""
    config = with_drain(STANDARD, turn_rows_max=1)
    ids = [await write(connection, obj=obj) for obj in range(1, 101)]
    key = await acts.lock_key(connection, STANDARD, await inspect_table(connection, REGION), (0, 1))
    tries: list[bool] = []

    async def try_to_win() -> None:
        async with connected(database) as other:
            while True:
                tries.append(
                    await other.fetchval("SELECT pg_try_advisory_xact_lock($1::int4, $2::int4)", SHARD_CLASS, key)
                )

    async def accept(message: Any) -> None:
        if message.id == ids[0]:
            rivals.append(asyncio.create_task(try_to_win()))
            await eventually(lambda: tries)
        if message.id == ids[-1]:
            rivals[0].cancel()
            await asyncio.wait(rivals)

    rivals: list[asyncio.Task[None]] = []
    result = await drain(database, Recorder(accept), config=config)

    assert result.delivered == 100
    assert not any(tries)


async def test_receivers_that_answer_each_other_come_to_an_end(database: str, connection: asyncpg.Connection) -> None:
    await write(connection)
    seen = Recorder(lambda _: write(connection))

    result = await drain(database, seen)

    assert len(seen.messages) == 10
    assert (result.stopped, result.remaining, result.exit_code) == ("endless", 1, 0)


async def test_a_deep_shard_to_which_receivers_add_comes_to_an_end_too(
    database: str, connection: asyncpg.Connection
) -> None:
    """Here no turn finds the end of the shard, so it is one drain that never ends by itself."""
    config = with_drain(STANDARD, turn_rows_max=2)

    async def write_two(message: Any) -> None:
        for _ in range(2):
            await write(connection, obj=message.id + 1_000)

    for obj in (1, 2, 3):
        await write(connection, obj=obj)

    result = await drain(database, Recorder(write_two), config=config)

    assert result.stopped == "endless"
    assert 30 <= result.delivered + result.coalesced <= 40


async def test_sigint_lets_the_delivery_under_way_finish(database: str, connection: asyncpg.Connection) -> None:
    config = with_drain(STANDARD, turn_rows_max=1)
    await write(connection, obj=1)
    stays = await write(connection, obj=2)
    gate = Gate()
    draining_one = asyncio.create_task(drain(database, gate, config=config))
    await gate.closed_behind()

    os.kill(os.getpid(), signal.SIGINT)
    await asyncio.sleep(0)
    gate.opened.set()
    result = await draining_one

    assert (result.delivered, result.stopped, result.exit_code) == (1, "signal", 0)
    assert await remaining(connection) == [stays]


async def test_a_message_that_kills_is_counted_first_in_prepared_mode(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO outboxd.worker (pid, host, version, silo_mode, died_at) VALUES (1, 'gone', '0', 'monolith', now())"
    )
    for obj in (1, 2, 3):
        await write(connection, obj=obj)
    counted = []

    async def look(_: Any) -> None:
        counted.append(await connection.fetchval("SELECT count(*) FROM outboxd.failure"))

    result = await drain(database, look)

    assert (counted, result.delivered, result.remaining) == ([1, 1, 1], 3, 0)
    assert await failures(connection) == []


async def test_other_due_shards_and_the_time_they_take_do_not_matter(
    database: str, connection: asyncpg.Connection
) -> None:
    """Nothing but this shard's rows is read: a hundred thousand other due messages are no reason to be slow."""
    await connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier)"
        " SELECT 0, 100 + n, 1, n FROM generate_series(1, 100000) AS n"
    )
    await write(connection, shard=1)
    await connection.execute("ANALYZE outbox")

    result = await drain(database, Recorder())

    assert result.delivered == 1
    read = "SELECT idx_tup_read FROM pg_stat_user_indexes WHERE relname = 'outbox' AND indexrelname LIKE '%scheduled%'"
    await connection.execute("SELECT pg_stat_force_next_flush()")
    assert await connection.fetchval(read) < 1_000


async def test_a_table_that_is_locked_at_the_end_is_not_waited_for_for_ever(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await write(connection)
    find_failures = drain_module._failures

    async def lock(*arguments: Any) -> Any:
        found = await find_failures(*arguments)
        await connection.execute("BEGIN; LOCK TABLE outbox")
        return found

    monkeypatch.setattr(drain_module, "_failures", lock)
    monkeypatch.setattr(acts, "LOCK_TIMEOUT_S", 0.1)

    with pytest.raises(errors.StatementFailed, match=r"counting the messages of a shard: .* lock timeout") as raised:
        await drain(database, Recorder())
    assert "Another session has locked it" in raised.value.hint


async def test_what_it_has_failed_is_backed_off_as_by_a_daemon(database: str, connection: asyncpg.Connection) -> None:
    """Also when its time had not come: drained at once, it waits twice as long as it would have waited."""
    await write(connection)
    await drain_once(database, Recorder(failing()))
    await connection.execute("UPDATE outbox SET scheduled_for = scheduled_from + interval '40 s'")

    await drain(database, Recorder(failing()))

    delay = "SELECT extract(epoch FROM scheduled_for - scheduled_from)::float8 FROM outbox"
    assert await connection.fetchval(delay) == 80
