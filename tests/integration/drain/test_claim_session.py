"""The session that holds the locks: lost, closed when in doubt, opened again."""

from __future__ import annotations

import asyncio
import contextlib
import functools
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from outboxd import check, claims, errors, session
from outboxd.claims import SHARD_CLASS, WORKER_CLASS, Claims
from outboxd.findings import exit_code as findings_exit_code
from outboxd.live import Live
from outboxd.load import Loaded
from outboxd.pipeline import Pipeline
from tests.drains import (
    CONTROL,
    REGION,
    Gate,
    Recorder,
    build,
    by_hand,
    configure,
    draining,
    failures,
    outboxd_backends,
    passes_more,
    remaining,
    shard_locks,
    until_empty,
    write,
    write_many,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message
    from tests.drains import ByHand


async def kill_claim_session(connection: asyncpg.Connection) -> None:
    [pid] = await outboxd_backends(connection, "claim")
    await connection.execute("SELECT pg_terminate_backend($1)", pid)

    async def gone() -> bool:
        return pid not in await outboxd_backends(connection, "claim")

    await eventually(gone)


async def reopened(connection: asyncpg.Connection, pipeline: Pipeline) -> bool:
    return pipeline.claims.is_open and len(await outboxd_backends(connection, "claim")) == 1


def at_key(replica: ByHand, number: int, expression: str) -> None:
    """Make the claim statement evaluate *expression* when it has locked so many keys."""
    statement = replica.claims._sql["claim"]
    lock = "pg_try_advisory_lock($1::int4, wanted.lock_key)"
    assert lock in statement
    trouble = f"CASE WHEN wanted.lock_key = ($2::text::int4[])[{number}] THEN {expression} IS NOT NULL ELSE true END"
    replica.claims._sql["claim"] = statement.replace(lock, f"{lock} AND {trouble}")


async def test_a_delivery_under_way_when_the_claim_session_is_lost_is_settled(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    await write(connection)
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        await kill_claim_session(connection)
        await eventually(lambda: not pipeline.claims.is_open)
        gate.opened.set()

        await until_empty(connection)

    assert len(gate.messages) == 1


async def test_a_failure_under_way_when_the_claim_session_is_lost_is_counted_once(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()

    async def fail(message: Message) -> None:
        await gate(message)
        raise ValueError

    await write(connection)
    async with draining(database, Recorder(fail)) as pipeline:
        await gate.closed_behind()
        await kill_claim_session(connection)
        await eventually(lambda: not pipeline.claims.is_open)
        gate.opened.set()
        await eventually(lambda: pipeline.totals()["failures"] == 1)

    assert [failure["attempts"] for failure in await failures(connection)] == [1]
    assert len(gate.messages) == 1


async def test_nothing_more_is_started_on_the_claims_of_a_lost_session(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    for obj in range(1, 6):
        await write(connection, obj=obj)
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        await kill_claim_session(connection)
        await eventually(lambda: not pipeline.claims.is_open)
        pipeline.claims.open = _never  # type: ignore[method-assign]
        gate.opened.set()
        await eventually(lambda: pipeline.totals()["delivered"] == 1)

    assert [message.object_identifier for message in gate.messages] == [1]
    assert len(await remaining(connection)) == 4


async def _never() -> None:
    raise errors.StoreUnavailable("closed by the test")


async def test_one_process_does_not_claim_a_shard_that_it_still_delivers_on_a_lost_session(
    database: str, connection: asyncpg.Connection
) -> None:
    gate = Gate()
    await write(connection)
    async with draining(database, gate) as pipeline:
        await gate.closed_behind()
        await kill_claim_session(connection)
        await eventually(lambda: reopened(connection, pipeline))
        await passes_more(pipeline)  # the shard is due and its lock is free

        assert len(gate.messages) == 1
        gate.opened.set()
        await until_empty(connection)

    assert len(gate.messages) == 1


async def test_the_claim_session_is_opened_again_and_the_drain_goes_on(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 200, shards=100)
    seen = Recorder()
    async with draining(database, seen) as pipeline:
        await kill_claim_session(connection)
        await until_empty(connection)
        await eventually(lambda: reopened(connection, pipeline))
        await write(connection, shard=1_000)
        await eventually(lambda: 1_000 in seen.shards)

    assert await shard_locks(connection) == 0


async def test_a_connection_that_is_lost_before_its_first_statement_is_an_error_of_ours(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    connect = session.connect

    async def cut_off(*args: Any, **options: Any) -> asyncpg.Connection:
        made = await connect(*args, **options)
        await connection.execute("SELECT pg_terminate_backend($1, 5000)", made.get_server_pid())
        return made

    config = configure()
    pipeline = Pipeline(config, build(config, Recorder()), lambda: database)
    monkeypatch.setattr(session, "connect", cut_off)
    finding = session.Session(lambda: database, name="find", lock_timeout_s=1, statement_timeout_s=1)
    for attempt in (finding.fetch("finding", "SELECT 1"), pipeline.open(), pipeline.claims.open()):
        with pytest.raises(errors.StoreUnavailable):
            await attempt
    prepared = check.prepare(lambda: Loaded(msgspec.structs.replace(config, dsn=database)))
    findings = await check.check(prepared, [], None)
    assert findings_exit_code(findings) == errors.StoreUnavailable.exit_code


async def test_a_session_that_hears_nothing_any_more_is_replaced(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As behind a proxy that forgets what is listened to."""
    monkeypatch.setattr(claims, "LISTEN_CHECK_INTERVAL_S", 0.0)
    monkeypatch.setattr(claims, "PING_INTERVAL_S", 0.05)
    monkeypatch.setattr(claims, "STATEMENT_TIMEOUT_S", 0.5)
    async with draining(database, Recorder()) as pipeline:
        deaf = pipeline.claims._session
        assert deaf is not None
        answered_at = deaf.answered_at
        await eventually(lambda: deaf.answered_at > answered_at + 0.2)
        assert deaf.alive, "while it hears, it stays"
        async with deaf.turnstile:
            await deaf.connection.execute("UNLISTEN *")
        await eventually(lambda: not deaf.alive)
        await eventually(lambda: reopened(connection, pipeline))


async def test_a_lost_session_leaves_one_worker_row_and_none_at_the_end(
    database: str, connection: asyncpg.Connection
) -> None:
    async with draining(database, Recorder()) as pipeline:
        before = pipeline.claims.worker_id
        await kill_claim_session(connection)
        await eventually(lambda: reopened(connection, pipeline))
        [(worker, died_at)] = await connection.fetch("SELECT id, died_at FROM outboxd.worker")
        assert (worker, died_at) == (pipeline.claims.worker_id, None)
        assert worker != before

    assert await connection.fetchval("SELECT count(*) FROM outboxd.worker") == 0


async def test_a_drain_with_every_session_killed_again_and_again_loses_nothing(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 600, shards=100, category="AUDIT")
    written = set(await remaining(connection))
    seen = Recorder()
    async with draining(database, seen, configure(turn_rows_max=2)):
        for count in (50, 150, 300, 450):
            await eventually(functools.partial(_has_seen, seen, count))
            for pid in await outboxd_backends(connection):
                await connection.execute("SELECT pg_terminate_backend($1)", pid)
        await until_empty(connection)

    assert set(seen.ids) == written


def _has_seen(seen: Recorder, count: int) -> bool:
    return len(seen.messages) >= count


async def test_a_claim_that_ends_in_anything_but_rows_closes_its_session_and_leaves_no_lock(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 40, shards=40)
    async with by_hand(database) as replica:
        candidates = await replica.find()
        at_key(replica, 30, "1 / 0")

        with pytest.raises(errors.StatementFailed, match="division by zero"):
            await replica.claims.claim(candidates)

        assert not replica.claims.is_open
        await eventually(lambda: _free(connection))


async def test_a_claim_that_is_cancelled_by_the_server_leaves_no_lock(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 40, shards=40)
    async with by_hand(database) as replica:
        candidates = await replica.find()
        at_key(replica, 30, "pg_sleep(60)::text")
        [pid] = await outboxd_backends(connection, "claim")
        claiming = asyncio.create_task(replica.claims.claim(candidates))

        async def half_way() -> bool:
            return await shard_locks(connection) == 30

        await eventually(half_way)
        await connection.execute("SELECT pg_cancel_backend($1)", pid)
        with pytest.raises(errors.OutboxdError):
            await claiming

        assert not replica.claims.is_open
        await eventually(lambda: _free(connection))


async def test_a_claim_whose_caller_is_cancelled_leaves_no_lock(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 10, shards=10)
    async with by_hand(database) as replica:
        candidates = await replica.find()
        at_key(replica, 10, "pg_sleep(60)::text")
        claiming = asyncio.create_task(replica.claims.claim(candidates))

        async def half_way() -> bool:
            return await shard_locks(connection) == 10

        await eventually(half_way)
        claiming.cancel()
        with pytest.raises(asyncio.CancelledError):
            await claiming

        assert not replica.claims.is_open
        await eventually(lambda: _free(connection))


async def _free(connection: asyncpg.Connection) -> bool:
    await connection.execute(
        "SELECT pg_cancel_backend(pid) FROM pg_stat_activity"
        " WHERE wait_event = 'PgSleep' AND datname = current_database()"
    )
    return await shard_locks(connection) == 0


async def test_a_release_of_a_lock_that_was_not_held_closes_the_session(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 3, shards=3)
    async with by_hand(database) as replica:
        claims = await replica.claims.claim(await replica.find())
        session = claims[0].session
        await session.connection.execute(  # type: ignore[attr-defined]
            "SELECT pg_advisory_unlock($1::int, $2::int)", SHARD_CLASS, claims[1].lock_key
        )

        with pytest.raises(errors.StoreUnavailable):
            await replica.claims.release(claims)

        assert not replica.claims.is_open
        assert not claims[2].is_usable(session.answered_at)


async def test_claims_of_an_earlier_session_are_not_unlocked_on_its_successor(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    async with by_hand(database) as replica:
        [candidate] = await replica.find()
        [old] = await replica.claims.claim([candidate])
        await kill_claim_session(connection)
        await eventually(lambda: not replica.claims.is_open)
        await eventually(lambda: _free(connection))
        await replica.claims.open()
        [new] = await replica.claims.claim([candidate])

        await replica.claims.release([old])

        assert await shard_locks(connection) == 1
        assert replica.claims.is_open
        await replica.claims.release([new])
        assert await shard_locks(connection) == 0


async def test_no_delivery_starts_on_a_session_that_has_not_answered_for_ten_seconds(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    async with by_hand(database) as replica:
        [claim] = await replica.claims.claim(await replica.find())
        answered_at = claim.session.answered_at

        assert claim.is_usable(answered_at + 9.9)
        assert not claim.is_usable(answered_at + 10.1)


async def test_a_worker_s_lock_is_held_while_its_row_can_be_seen(database: str, connection: asyncpg.Connection) -> None:
    async with by_hand(database) as replica:
        held = await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::int8 = $1 AND objid::int8 = $2",
            WORKER_CLASS,
            replica.claims.worker_id,
        )
        assert held == 1
        await replica.claims.close()

        assert await connection.fetchval("SELECT count(*) FROM outboxd.worker") == 0


async def test_a_daemon_with_other_sharding_columns_is_refused(database: str) -> None:
    other = configure(msgspec.structs.replace(REGION, sharding_columns=["shard_identifier", "shard_scope"]))
    claims = Claims(lambda: database, other, Live(other.drain, build(other, Recorder())))
    async with by_hand(database):
        with pytest.raises(errors.FleetError):
            await claims.open()


async def test_a_drain_of_one_shard_with_other_sharding_columns_is_called_by_its_name(database: str) -> None:
    config = configure(msgspec.structs.replace(REGION, sharding_columns=["shard_identifier", "shard_scope"]))
    drain = Claims(lambda: database, config, Live(config.drain, build(config, Recorder())), one_shard=True)
    await drain.open()
    try:
        with pytest.raises(errors.FleetError, match="the `outboxd drain` with pid"):
            async with by_hand(database):
                pass
    finally:
        await drain.close()


async def test_one_shard_of_two_outboxes_has_two_locks(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE twin (LIKE outbox INCLUDING ALL)")
    await write(connection)
    await write(connection, table="twin")
    async with by_hand(database) as one:
        [first] = await one.find()
    async with by_hand(database, configure(msgspec.structs.replace(REGION, table="twin"))) as other:
        [second] = await other.find()

    assert first.shard == second.shard
    assert first.lock_key != second.lock_key


async def test_replicas_agree_on_the_lock_of_a_shard_after_the_table_was_replaced(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection)
    async with by_hand(database) as old:
        await old.find()
        async with connection.transaction():
            await connection.execute("ALTER TABLE outbox RENAME TO outbox_old")
            await connection.execute("CREATE TABLE outbox (LIKE outbox_old INCLUDING ALL)")
        await write(connection)
        async with by_hand(database) as new:
            [seen_by_old], [seen_by_new] = await old.find(), await new.find()

    assert seen_by_old.shard == seen_by_new.shard
    assert seen_by_old.lock_key == seen_by_new.lock_key


async def test_a_session_that_is_lost_while_an_outbox_begins_to_listen_ends_in_an_error_of_ours_at_most(
    database: str,
) -> None:
    async with by_hand(database) as replica:
        session = replica.claims._session
        assert session is not None
        await session.connection.close()
        session.alive = True  # not noticed yet

        with contextlib.suppress(errors.StoreUnavailable):
            await replica.claims.listen("some_channel", lambda: None)

        assert not session.alive


async def test_daemons_of_the_other_silo_have_no_place_among_these(database: str) -> None:
    both = configure(REGION, CONTROL)
    region, control = (msgspec.structs.replace(both, silo_mode=silo) for silo in ("region", "control"))
    async with draining(database, Recorder(), region) as first, draining(database, Recorder(), control) as other:
        await eventually(lambda: other.claims.place() == (0, 1))
        async with draining(database, Recorder(), region) as second:
            assert second.claims.place() == (1, 2)
            await eventually(lambda: first.claims.place() == (0, 2))
        assert other.claims.place() == (0, 1)
