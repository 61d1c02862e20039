"""What looking, reading and settling cost, in buffers: never in proportion to what is not due (I7)."""

from __future__ import annotations

import contextlib
import datetime as dt
import sys
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from outboxd import find
from outboxd.find import Finder
from outboxd.model import Candidate
from outboxd.outbox import Failure
from tests.drains import (
    ByHand,
    Recorder,
    by_hand,
    configure,
    connected,
    drain_once,
    draining,
    failing,
    passes_more,
    write,
    write_many,
)
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable, Iterator, Sequence

    import asyncpg

    from outboxd.model import ShardKey
    from outboxd.outbox import Outbox
    from outboxd.session import Session

ROWS = 200_000
# The tables' buffers that this backend has looked at and not reported yet; within a transaction it reports nothing.
BLOCKS = """
    SELECT coalesce(sum(pg_stat_get_xact_blocks_fetched(oid)), 0)::int8 FROM pg_class
    WHERE relkind IN ('r', 'i') AND relname ~ '^(outbox|failure)'
"""


@contextlib.contextmanager
def counted(session: Session) -> Iterator[list[int]]:
    """Count the buffers that each statement on a session looks at: the very statement, with its cached plan."""
    counts: list[int] = []

    async def fetch(doing: str, statement: str, *args: Any) -> list[asyncpg.Record]:
        async with session.transaction(doing) as run:
            [[before]] = await run(BLOCKS)
            rows = await run(statement, *args)
            [[after]] = await run(BLOCKS)
        counts.append(after - before)
        return rows

    async def fetch_many(doing: str, statement: str, each: Sequence[Sequence[Any]]) -> list[asyncpg.Record]:
        return [row for arguments in each for row in await fetch(doing, statement, *arguments)]

    async def execute(doing: str, statement: str, *args: Any) -> int:
        await fetch(doing, statement, *args)
        return sys.maxsize  # nothing that was to be touched is missing

    hooks = {"fetch": fetch, "fetch_many": fetch_many, "execute": execute}
    vars(session).update(hooks)
    try:
        yield counts
    finally:
        for name in hooks:
            del vars(session)[name]


@pytest.fixture
async def replica(database: str) -> AsyncIterator[ByHand]:
    async with by_hand(database) as opened:
        yield opened


async def read(replica: ByHand, shards: Iterable[ShardKey]) -> list[int]:
    return await replica.read([Candidate(shard, 0, None) for shard in shards], rows_per_shard=100)


async def use_on_an_empty_table(replica: ByHand, connection: asyncpg.Connection) -> None:
    """Twenty rounds of everything on an empty, analysed table: what a daemon does all night."""
    await connection.execute("ANALYZE outbox; ANALYZE outboxd.failure")
    outbox = replica.outbox
    for _ in range(20):
        await outbox.find_scheduled_shards(None)
        await outbox.find_new(0)
        await outbox.highest_id()
        await outbox.next_due_in_s()
        await outbox.count_due_shards(100)
        await outbox.read_failures([(0, 1)])
        await read(replica, [(0, 1)])
        await outbox.read_payload(1)
        await outbox.read_scheduled_from([1])
        await outbox.delete_messages([1])
        await outbox.delete_messages([1], [((0, 1), 1, 1)])


MANY_FAILURES = """
    INSERT INTO outboxd.failure (
        outbox, region_name, shard_scope, shard_identifier, category, object_identifier,
        message_id, attempts, last_error
    )
    SELECT $1, '', 0, n::text, 1, '1', n, 1, '' FROM generate_series(1000000, 1020000) AS n
"""


def clearing_one(outbox: Outbox) -> tuple[Any, ...]:
    """The statement that forgets one failure of many; inside of a transaction its buffers could not be counted."""
    return outbox._sql["clear_failures"], outbox.name, [""], [0], ["1000100"], [1], ["1"]


async def prepare_and_undo(outbox: Outbox, message_id: int) -> None:
    """Count a failure of one message ahead, and take it back."""
    one = "SELECT scheduled_for, shard_identifier, object_identifier FROM outbox WHERE id = $1"
    [[scheduled_for, shard, obj]] = await outbox.failing.fetch("looking", one, message_id)
    failure = Failure(
        shard=(0, shard),
        category=1,
        object_identifier=obj,
        message_id=message_id,
        scheduled_for=scheduled_for,
        delay=dt.timedelta(seconds=2),
        error="no",
        only_ids=[message_id],
        is_counted=False,
    )
    [(attempts, moved_to)] = await outbox.prepare_next_from_shards([failure], rows_max=1_000, categories_off=[])
    assert attempts == 1
    await outbox.undo_prepared([message_id], ((0, shard), 1, obj), None, moved_to=moved_to)


async def test_plans_made_on_an_empty_table_are_not_used_when_200_000_messages_arrive(
    connection: asyncpg.Connection, replica: ByHand
) -> None:
    await use_on_an_empty_table(replica, connection)
    await write_many(connection, ROWS, shards=ROWS // 10)
    outbox = replica.outbox

    with counted(outbox.finding) as finding:
        candidates, _ = await outbox.find_scheduled_shards(None)
        assert len(candidates) == 500
        assert finding[-1] < 20 * 500
        assert len((await outbox.find_new(ROWS - 10)).candidates) == 10
        assert finding[-1] < 50
        assert len((await outbox.find_new(ROWS - 10, range(1, 101))).candidates) == 110
        assert finding[-1] < 500
        await outbox.highest_id()
        assert finding[-1] < 20
        await outbox.next_due_in_s()
        assert finding[-1] < 20
        await outbox.count_due_shards(100)
        assert finding[-1] < 20 * 100

    with counted(outbox.reading) as reading:
        ids = await read(replica, [candidate.shard for candidate in candidates[:20]])
        assert len(ids) == 200
        assert reading[-1] < 30 * 20
        await outbox.read_failures([candidate.shard for candidate in candidates[:20]])
        assert reading[-1] < 20 * 20
        await outbox.read_payload(ROWS // 2)
        assert reading[-1] < 20

    await connection.execute(MANY_FAILURES, outbox.name)
    with counted(outbox.settling) as settling:
        await outbox.settling.fetch("clearing", *clearing_one(outbox))
        assert settling[-1] < 20
        await outbox.delete_messages(ids)
        assert settling[-1] < 20 * 200
        await outbox.delete_messages([ROWS // 2])
        assert settling[-1] < 30

    with counted(outbox.failing) as failing:
        await outbox.read_scheduled_from([ROWS // 2 + 1])
        assert failing[-1] < 20
        await prepare_and_undo(outbox, ROWS - 100)
        assert max(failing[-2:]) < 60
    assert await connection.fetchval("SELECT count(*) FROM outbox") == ROWS - 201


async def test_the_check_that_a_shard_is_still_due_costs_a_probe_a_shard(
    connection: asyncpg.Connection, replica: ByHand
) -> None:
    await use_on_an_empty_table(replica, connection)
    await write_many(connection, ROWS, shards=100)  # deep shards, all with the same due time
    candidates = (await replica.find())[:50]

    with counted(replica.outbox.reading) as reading:
        ids = await replica.read(candidates, rows_per_shard=1)

    assert len(ids) == 50
    assert reading[-1] < 30 * 50


async def test_a_find_costs_what_is_due_and_not_what_is_in_backoff(
    connection: asyncpg.Connection, replica: ByHand
) -> None:
    await write_many(connection, 50_000, shards=50_000, due_in_s=3600)
    for shard in range(60_001, 60_011):
        await write(connection, shard=shard)

    with counted(replica.outbox.finding) as finding:
        candidates, after = await replica.outbox.find_scheduled_shards(None)
        assert await replica.outbox.next_due_in_s() is not None

    assert (len(candidates), after) == (10, None)
    assert max(finding) < 20 * 11


async def test_a_find_costs_the_same_however_deep_the_shards_are(
    connection: asyncpg.Connection, replica: ByHand
) -> None:
    await write_many(connection, 100_000, shards=10)

    with counted(replica.outbox.finding) as finding:
        candidates, _ = await replica.outbox.find_scheduled_shards(None)

    assert len(candidates) == 10
    assert finding[-1] < 20 * 11


async def test_the_plan_of_a_find_uses_the_index_of_due_times_on_200_000_messages(
    connection: asyncpg.Connection, replica: ByHand
) -> None:
    await write_many(connection, ROWS, shards=1_000)
    await connection.execute("ANALYZE outbox")
    statement = replica.outbox._sql["find_scheduled_shards"]

    rows = await replica.outbox.finding.fetch(
        "explaining", f"EXPLAIN (FORMAT JSON) {statement}", -(2**63), 500, -(2**31), -(2**63)
    )

    plan = msgspec.json.decode(rows[0][0])[0]["Plan"]
    scans = [node for node in _nodes(plan) if node.get("Relation Name") == "outbox"]
    assert {node["Node Type"] for node in scans} <= {"Index Scan", "Index Only Scan"}
    assert {node["Index Name"] for node in scans} == {"outbox_scheduled_for_shard_scope_shard_identifier_idx"}
    assert not [node for node in _nodes(plan) if node["Node Type"] in ("Sort", "Hash", "Materialize")]


def _nodes(plan: dict[str, Any]) -> Iterator[dict[str, Any]]:
    yield plan
    for child in plan.get("Plans", []):
        yield from _nodes(child)


async def test_wake_ups_do_not_walk_what_was_delivered_but_cannot_be_vacuumed(
    database: str, connection: asyncpg.Connection, replica: ByHand
) -> None:
    replica.live.drain = configure(poll_interval_s=3600).drain
    await write_many(connection, ROWS, shards=20)
    finder = Finder(replica.outbox, replica.live)
    async with connected(database) as snapshot, snapshot.transaction(isolation="repeatable_read", readonly=True):
        await snapshot.execute("SELECT count(*) FROM outbox")
        await finder.look()
        await connection.execute("DELETE FROM outbox")
        while not finder.passes:
            await finder.look()

        with counted(replica.outbox.finding) as finding:
            for shard in range(1, 6):
                await write(connection, shard=shard)
                finder.wake()
                candidates = await finder.look()
                assert [candidate.shard for candidate in candidates] == [(0, shard)]

    assert len(finding) == 5
    assert max(finding) < 50


async def test_wake_ups_that_find_nothing_do_not_walk_again_and_again_what_others_have_delivered(
    database: str, connection: asyncpg.Connection, replica: ByHand
) -> None:
    """A producer that flushes wakes the daemon for messages that it delivers itself."""
    replica.live.drain = configure(poll_interval_s=3600).drain
    finder = Finder(replica.outbox, replica.live)
    await finder.look()
    assert finder.passes
    async with connected(database) as snapshot, snapshot.transaction(isolation="repeatable_read", readonly=True):
        await snapshot.execute("SELECT count(*) FROM outbox")
        await write_many(connection, 50_000, shards=20)
        await connection.execute("DELETE FROM outbox")

        with counted(replica.outbox.finding) as finding:
            for _ in range(5):
                finder.wake()
                assert await finder.look() == []

    assert sum(finding[1:]) < 50


async def test_what_is_new_is_polled_for_while_a_costly_pass_rests(
    connection: asyncpg.Connection, replica: ByHand, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(find, "PASS_SHARE_MAX", 1e-9)
    monkeypatch.setattr(find, "PASS_REST_S_MAX", 3_600.0)
    replica.live.drain = configure(poll_interval_s=0.05).drain
    finder = Finder(replica.outbox, replica.live)
    await finder.look()
    await write(connection, shard=7)
    found: list[Candidate] = []

    async def is_found() -> bool:
        found.extend(await finder.look())
        return bool(found)

    await eventually(is_found)
    assert ([candidate.shard for candidate in found], finder.passes) == ([(0, 7)], 1)


async def test_a_drain_does_not_walk_what_it_has_delivered_itself_in_every_round(
    database: str, connection: asyncpg.Connection
) -> None:
    """With an old snapshot held, the dead stay; a pass goes on from where its last step ended."""
    count = 20_000
    await write_many(connection, count, shards=4_000)
    async with connected(database) as snapshot, snapshot.transaction(isolation="repeatable_read", readonly=True):
        await snapshot.execute("SELECT count(*) FROM outbox")
        await _forget_statistics(connection)
        pipeline = await drain_once(database, Recorder(), configure(concurrency=20))

    assert pipeline.totals()["retired"] == count

    async def few_blocks() -> bool:
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        fetched = await connection.fetchval(
            "SELECT idx_blks_read + idx_blks_hit FROM pg_statio_user_indexes"
            " WHERE indexrelname = 'outbox_scheduled_for_shard_scope_shard_identifier_idx'"
        )
        # 16 000: find and check look at the index for each shard. Starting over at each step takes twice that.
        assert 0 < fetched < 24_000
        return True

    await eventually(few_blocks)


async def _forget_statistics(connection: asyncpg.Connection) -> None:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    await connection.execute("SELECT pg_stat_reset()")


async def test_a_failing_deep_shard_costs_a_probe_and_not_its_depth(
    database: str, connection: asyncpg.Connection, replica: ByHand
) -> None:
    await write_many(connection, 100_000)
    await drain_once(database, Recorder(failing()))
    outbox = replica.outbox

    with counted(outbox.finding) as finding, counted(outbox.reading) as reading:
        [candidate], _ = await outbox.find_scheduled_shards(None)
        [[failure]] = await outbox.read_failures([candidate.shard])

    assert failure.held_for_s(60) > 0
    # The first thousand were moved, so their old entries lie before the first due one until they are vacuumed.
    assert max(finding) < 100
    assert max(reading) < 30


async def test_a_paused_deep_shard_costs_a_probe_a_pass_and_is_never_read(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 100_000)
    await connection.execute("INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier) VALUES ('shard', 0, '1')")
    async with draining(database, Recorder()) as pipeline:
        await eventually(lambda: pipeline.branches[0].outbox is not None)
        outbox = pipeline.branches[0].outbox
        assert outbox is not None
        with counted(outbox.finding) as finding, counted(outbox.reading) as reading:
            await passes_more(pipeline)

    assert 0 < max(finding) < 30
    assert reading == []


async def test_an_idle_daemon_hardly_touches_a_backlog_in_backoff(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 50_000, shards=50_000, due_in_s=3600)
    async with draining(database, Recorder()) as pipeline:
        await eventually(lambda: pipeline.branches[0].outbox is not None)
        outbox = pipeline.branches[0].outbox
        assert outbox is not None
        with counted(outbox.finding) as finding:
            await passes_more(pipeline)

    assert max(finding) < 30


async def test_the_settings_of_hot_sessions_survive_a_reset(
    database: str, connection: asyncpg.Connection, replica: ByHand
) -> None:
    claiming = replica.claims._session
    assert claiming is not None
    await claiming.connection.execute("RESET ALL")
    for session in (replica.outbox.finding, replica.outbox.reading, replica.outbox.settling):
        await session.fetch("resetting", "RESET ALL")

        rows = await session.fetch("asking", SETTINGS)

        assert [row[0] for row in rows] == EXPECTED
    assert [row[0] for row in await claiming.connection.fetch(SETTINGS)] == EXPECTED


SETTINGS = """
    SELECT current_setting(name) FROM unnest(
        ARRAY['plan_cache_mode', 'jit', 'idle_session_timeout', 'default_transaction_isolation']
    ) AS names (name)
"""
EXPECTED = ["force_generic_plan", "off", "0", "read committed"]
