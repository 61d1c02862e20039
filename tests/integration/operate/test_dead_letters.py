"""Dead letters go back into their outbox, or away, whole and once: whatever else is done to them meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import datetime as dt
import uuid
from typing import TYPE_CHECKING, Any

import msgspec
import pytest

from outboxd import acts, dead_letters, errors
from outboxd.dead_letters import BATCH_ROWS, Selection, Tally
from outboxd.inspection import inspect_table
from tests.drains import CONTROL, REGION, STANDARD, TEXT, UUID, Recorder, connected, drain_once, remaining, write
from tests.eventually import PATIENCE_S
from tests.letters import letter_ids, letters, write_letters

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg

    from outboxd.config import OutboxConfig

EVERYTHING = Selection()
KEY = "d41d8cd9-8f00-b204-e980-0998ecf8427e"


async def retry(connection: asyncpg.Connection, selection: Selection = EVERYTHING, **options: Any) -> Tally:
    tally = Tally()
    outbox = options.pop("outbox", REGION)
    await dead_letters.retry(connection, STANDARD, outbox, selection, tally, **options)
    return tally


async def purge(connection: asyncpg.Connection, selection: Selection = EVERYTHING) -> Tally:
    tally = Tally()
    await dead_letters.purge(connection, STANDARD, selection, tally)
    return tally


async def test_a_dead_letter_comes_back_as_the_message_that_it_was(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute("ALTER TABLE outbox ALTER COLUMN id SET GENERATED ALWAYS")
    written = await write(connection, shard=5, obj=7, payload={"slug": "blau"})
    await connection.execute("""UPDATE outbox SET headers = '{"traceparent": "00-1"}'""")
    before = await connection.fetchrow("SELECT * FROM outbox")
    await drain_once(database, Recorder(lambda _: (_ for _ in ()).throw(errors.Discard("no"))))
    newer = await write(connection, shard=5, obj=7, payload={"slug": "rot"})

    tally = await retry(connection)

    after = await connection.fetchrow("SELECT * FROM outbox WHERE id = $1", written)
    assert before is not None
    assert after is not None
    moved = {"scheduled_from", "scheduled_for"}
    assert {k: v for k, v in after.items() if k not in moved} == {k: v for k, v in before.items() if k not in moved}
    assert (tally.moved, tally.stayed, await letter_ids(connection)) == (1, 0, [])
    assert written < newer
    seen = Recorder()
    await drain_once(database, seen)
    assert (seen.ids, seen.messages[0].payload) == ([newer], {"slug": "rot"}), "the older content does not look newer"


async def test_it_is_due_at_once_and_its_attempts_are_counted_anew(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_letters(connection)

    await retry(connection)

    seen = Recorder()
    await drain_once(database, seen)
    assert [(message.id, message.attempt) for message in seen.messages] == [(1_000, 1)]
    assert seen.messages[0].date_added == dt.datetime(2026, 1, 2, 3, 4, 5, tzinfo=dt.UTC)


@pytest.mark.parametrize(
    ("outbox", "table", "shard"),
    [
        (CONTROL, "control_outbox", "42"),
        (UUID, "uuid_outbox", "0d8f6c2e-3a51-4d0a-9f3e-0123456789ab"),
        (TEXT, "text_outbox", "it's a 'key'"),
    ],
    ids=lambda value: getattr(value, "name", None),
)
async def test_keys_of_every_type_and_regions_come_back(
    connection: asyncpg.Connection, outbox: OutboxConfig, table: str, shard: str
) -> None:
    region = "eu" if outbox is CONTROL else None
    [letter] = await write_letters(connection, outbox=outbox.name, shard=shard, region=region)
    if outbox is UUID:
        await connection.execute("UPDATE outboxd.dead_letter SET object_identifier = $1", str(uuid.uuid4()))

    assert (await retry(connection, Selection(ids=(letter,)), outbox=outbox)).moved == 1

    row = await connection.fetchrow(f"SELECT * FROM {table}")
    assert row is not None
    assert (row["id"], str(row["shard_identifier"]), row.get("region_name")) == (1_000, shard, region)


async def test_payloads_keep_their_size_and_every_digit(connection: asyncpg.Connection) -> None:
    payload = '{"n": 1e400, "d": 0.1000000000000000055511151231257827, "t": "%s"}' % ("x" * 3_000_000)
    await write_letters(connection, payload=payload)
    before = await connection.fetchval("SELECT md5(payload::text) FROM outboxd.dead_letter")

    await retry(connection)

    assert await connection.fetchval("SELECT md5(payload::text) FROM outbox") == before


async def test_one_whose_id_is_taken_stays_and_the_others_go(connection: asyncpg.Connection) -> None:
    taken = await write(connection, obj=99)
    [stays] = await write_letters(connection, first_message=taken)
    await write_letters(connection, 3)

    tally = await retry(connection)

    assert (tally.moved, tally.stayed) == (3, 1)
    assert await letter_ids(connection) == [stays]
    assert await connection.fetchval("SELECT object_identifier FROM outbox WHERE id = $1", taken) == 99


async def test_of_two_with_one_id_the_later_stays(connection: asyncpg.Connection) -> None:
    """A table that was made anew gives ids a second time."""
    await write_letters(connection)
    [later] = await write_letters(connection)

    tally = await retry(connection)

    assert (tally.moved, tally.stayed, await letter_ids(connection)) == (1, 1, [later])


async def test_one_with_headers_stays_where_the_table_has_none(connection: asyncpg.Connection) -> None:
    await connection.execute("ALTER TABLE outbox DROP COLUMN headers")
    await write_letters(connection, 2)
    await connection.execute("""UPDATE outboxd.dead_letter SET headers = '{"a": 1}' WHERE message_id = 1001""")

    tally = await retry(connection)

    assert (tally.moved, tally.stayed, await remaining(connection)) == (1, 1, [1_000])


async def test_a_key_that_is_not_of_the_tables_type_is_an_error_that_loses_nothing(
    connection: asyncpg.Connection,
) -> None:
    ids = await write_letters(connection, shard="not a number")

    with pytest.raises(errors.StatementFailed, match="invalid input syntax for type bigint"):
        await retry(connection)

    assert (await letter_ids(connection), await remaining(connection)) == (ids, [])


async def test_many_go_in_batches_and_what_comes_meanwhile_is_left(connection: asyncpg.Connection) -> None:
    count = 2 * BATCH_ROWS + 1
    await write_letters(connection, count)
    counted = await dead_letters.count(connection, STANDARD)
    later = await write_letters(connection, first_message=50_000)

    tally = await retry(connection, until=counted.newest_id)

    assert (tally.moved, await letter_ids(connection)) == (count, later)
    assert len(await remaining(connection)) == count


async def test_a_batch_is_bounded_in_bytes_too(connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each payload is more than a batch may hold: one goes at a time, and all go."""
    monkeypatch.setattr(dead_letters, "BATCH_BYTES", 1)
    await write_letters(connection, 5, payload='{"a": 1}')
    statements: list[str] = []
    connection.add_query_logger(lambda record: statements.append(record.query))

    tally = await retry(connection)

    assert tally.moved == 5
    assert len([text for text in statements if text.startswith("WITH chosen")]) == 6


async def test_after_a_crash_between_batches_every_message_is_in_one_place(
    database: str, connection: asyncpg.Connection
) -> None:
    """The connection goes while the second batch is under way; another run finishes the work."""
    count = 2 * BATCH_ROWS
    await write_letters(connection, count)
    async with connected(database) as other:
        blocker = connection.transaction()
        await blocker.start()
        await connection.execute("SELECT FROM outboxd.dead_letter WHERE message_id = $1 FOR UPDATE", 1_000 + BATCH_ROWS)
        tally = Tally()
        running = asyncio.create_task(dead_letters.retry(other, STANDARD, REGION, EVERYTHING, tally))
        async with connected(database) as watcher:
            while tally.moved < BATCH_ROWS:
                await asyncio.sleep(0)
            await until_waiting(watcher, other.get_server_pid())
            await watcher.execute("SELECT pg_terminate_backend($1)", other.get_server_pid())
        with pytest.raises(errors.StoreUnavailable):
            await running
        await blocker.rollback()

    back, still = await remaining(connection), [row["message_id"] for row in await letters(connection)]
    assert len(back) == BATCH_ROWS
    assert sorted(back + still) == list(range(1_000, 1_000 + count))
    assert (await retry(connection)).moved == BATCH_ROWS
    assert await remaining(connection) == list(range(1_000, 1_000 + count))


async def until_waiting(connection: asyncpg.Connection, backend: int) -> None:
    """Wait until a session waits for a lock."""
    waiting = "SELECT wait_event_type = 'Lock' FROM pg_stat_activity WHERE pid = $1"
    async with asyncio.timeout(PATIENCE_S):
        while not await connection.fetchval(waiting, backend):
            await asyncio.sleep(0)


@pytest.mark.parametrize("other_act", [retry, purge])
async def test_two_that_want_the_same_dead_letters_move_each_once(
    database: str, connection: asyncpg.Connection, other_act: Any
) -> None:
    count = 3 * BATCH_ROWS
    await write_letters(connection, count)

    async with connected(database) as one, connected(database) as two:
        first, second = await asyncio.gather(retry(one), other_act(two))

    assert first.moved + second.moved == count
    assert first.stayed == second.stayed == 0
    assert await letter_ids(connection) == []
    back = first.moved + (second.moved if other_act is retry else 0)
    assert len(await remaining(connection)) == back


async def test_a_retry_waits_for_a_purge_of_the_same_and_finds_it_gone(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_letters(connection)
    async with connected(database) as other:
        purging = other.transaction()
        await purging.start()
        await other.execute("DELETE FROM outboxd.dead_letter")
        retrying = asyncio.create_task(retry(connection))
        async with connected(database) as watcher:
            await until_waiting(watcher, connection.get_server_pid())
        await purging.commit()
        tally = await retrying

    assert (tally.moved, tally.looked_at, await remaining(connection)) == (0, 0, [])


async def test_a_locked_outbox_is_an_error_after_some_seconds_and_loses_nothing(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("outboxd.acts.LOCK_TIMEOUT_S", 0.1)
    ids = await write_letters(connection)
    async with connected(database) as other, other.transaction():
        await other.execute("LOCK TABLE outbox IN SHARE MODE")
        with pytest.raises(errors.StatementFailed) as raised:
            await retry(connection)

    assert raised.value.sqlstate == "55P03"
    assert "Another session has locked it" in raised.value.hint
    assert await letter_ids(connection) == ids


@pytest.mark.parametrize(
    ("selection", "expected"),
    [
        (Selection(ids=(2, 3)), [2, 3]),
        (Selection(outbox="old"), [5]),
        (Selection(category=2), [2]),
        (Selection(scope=0, shard="9"), [3]),
        (Selection(scope=1), []),
        (Selection(region="eu"), [4]),
        (Selection(older_than=dt.timedelta(hours=1)), [1, 2]),
        (Selection(newer_than=dt.timedelta(hours=1)), [3, 4, 5]),
        (Selection(older_than=dt.timedelta(hours=1), category=1), [1]),
        (Selection(), [1, 2, 3, 4, 5]),
    ],
)
async def test_a_selection_means_what_it_says(
    connection: asyncpg.Connection, selection: Selection, expected: list[int]
) -> None:
    await write_letters(connection, age_s=7_200)
    await write_letters(connection, age_s=7_200, category=2)
    await write_letters(connection, shard="9")
    await write_letters(connection, outbox="control", region="eu")
    await write_letters(connection, outbox="old")

    counted = await dead_letters.count(connection, STANDARD, selection)
    tally = await purge(connection, selection)

    assert (counted.total, tally.moved) == (len(expected), len(expected))
    assert await letter_ids(connection) == sorted({1, 2, 3, 4, 5} - set(expected))


async def test_counts_are_bounded_for_each_outbox(connection: asyncpg.Connection) -> None:
    await write_letters(connection, 5)
    await write_letters(connection, 2, outbox="old")

    counted = await dead_letters.count(connection, STANDARD, limit=3)

    assert counted.by_outbox == {"old": 2, "region": 3}


async def test_a_count_without_conditions_reads_as_many_entries_as_its_limit(connection: asyncpg.Connection) -> None:
    await write_letters(connection, 20_000)
    await connection.execute("VACUUM ANALYZE outboxd.dead_letter")

    assert max(await rows_read(connection, "count", {"limit": 100})) <= 100


@pytest.mark.parametrize("statement", ["revive", "purge"])
async def test_a_batch_reads_its_own_rows_only_though_the_statistics_say_that_there_are_none(
    connection: asyncpg.Connection, statement: str
) -> None:
    await connection.execute("ANALYZE outboxd.dead_letter")
    await write_letters(connection, 20_000)
    values: dict[str, Any] = {"of": "region", "after": 5_000, "until": 10**9, "rows_max": 100, "bytes_max": 10**9}

    assert max(await rows_read(connection, statement, values)) <= 2 * 100


async def rows_read(connection: asyncpg.Connection, statement: str, values: dict[str, Any]) -> list[float]:
    """Run a statement, take it back, and tell how many rows each part of its plan has made."""
    table = await inspect_table(connection, REGION)
    names, columns = dead_letters._table_names(table), table.shard_columns
    asked = dead_letters._query(STANDARD, statement, EVERYTHING, values, names=names, shard_columns=columns)
    text, arguments = asked.bound()
    with contextlib.suppress(TakenBackError):
        async with acts.transaction(connection, "counting"):
            plan = await connection.fetchval(f"EXPLAIN (ANALYZE, FORMAT JSON) {text}", *arguments)
            raise TakenBackError
    return list(_rows_made(msgspec.json.decode(plan)[0]["Plan"]))


class TakenBackError(Exception):
    """Ends a transaction without a trace."""


def _rows_made(plan: dict[str, Any]) -> Iterator[float]:
    removed = plan.get("Rows Removed by Join Filter", 0) + plan.get("Rows Removed by Filter", 0)
    yield (plan["Actual Rows"] + removed) * (plan["Actual Loops"] if "Index Name" in plan else 1)
    for child in plan.get("Plans", []):
        yield from _rows_made(child)


@pytest.mark.parametrize(
    ("meant", "others"), [("-5", ("5",)), ("acme-eu", ("acmeeu", "ACME-EU")), (KEY.upper(), ("x",))]
)
async def test_letters_of_another_shard_stay(
    connection: asyncpg.Connection, meant: str, others: tuple[str, ...]
) -> None:
    for shard in (meant, *others):
        await write_letters(connection, shard=shard)

    tally = await purge(connection, Selection(scope=0, shard=meant.lower()))

    assert tally.moved == 1
    assert {row["shard_identifier"] for row in await letters(connection)} == set(others)
