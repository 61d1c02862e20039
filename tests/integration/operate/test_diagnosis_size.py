"""Large tables are not read whole: what is counted of a part is an estimate and says so; what can be exact is."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import check, diagnosis, diagnosis_display, doctor, errors, query
from outboxd.diagnosis import Bounds
from outboxd.query import Query, fetch
from tests.drains import CONTROL, REGION, configure, connected, write_many
from tests.eventually import eventually
from tests.processes import run
from tests.psql import rows_of

if TYPE_CHECKING:
    import asyncpg

    from tests.trouble import Trouble

CONFIG = configure(REGION, CONTROL)
OUTBOXES = CONFIG.outboxes
DEEP, DEEP_ROWS, ROWS = 1, 20_000, 40_000
SMALL = Bounds(pages=40, rows=500, dead=100_000, counted=2_000, object_rows=1_000)


async def fill(connection: asyncpg.Connection) -> int:
    """Write a deep shard and 4 000 of five messages each, and tell how many pages they take."""
    await connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier)"
        " SELECT 0, CASE WHEN n % 2 = 0 THEN $1::int ELSE 1000 + n % 8000 / 2 END, 1 + n % 2, n"
        " FROM generate_series(1, $2::int) AS n",
        DEEP,
        ROWS,
    )
    return await pages(connection)


async def pages(connection: asyncpg.Connection) -> int:
    return int(await connection.fetchval("SELECT pg_relation_size('outbox') / 8192"))


async def ask(connection: asyncpg.Connection, question: Query) -> list[dict[str, Any]]:
    return await fetch(connection, question, "asking")


async def pages_read(connection: asyncpg.Connection, question: Query) -> int:
    """Tell how many pages of tables and indexes a question touches, each as often as it does."""
    text, arguments = question.bound()
    await connection.execute("SET enable_seqscan = off; SET enable_bitmapscan = off; SET jit = off")
    explained = json.loads(await connection.fetchval(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {text}", *arguments))
    plan = explained[0]["Plan"]
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


async def test_a_deep_shard_of_a_large_table_is_estimated_and_a_shallow_one_is_exact(
    connection: asyncpg.Connection, database: str
) -> None:
    assert await fill(connection) > 5 * SMALL.pages
    question = diagnosis.shards(CONFIG, OUTBOXES, limit=5, bounds=SMALL)

    deep, *shallow = await ask(connection, question)

    assert (deep["shard_identifier"], deep["is_estimate"]) == (DEEP, True)
    assert deep["depth"] == pytest.approx(DEEP_ROWS, rel=0.4)
    assert deep["due"] == deep["depth"]
    assert [(row["depth"], row["is_estimate"]) for row in shallow] == [(5, False)] * 4
    assert await ask(connection, question) == [deep, *shallow], "asked again, it gives another answer"
    assert await rows_of(database, question.for_psql()) == [deep, *shallow]


async def test_the_depth_of_a_category_and_the_total_are_estimated_and_say_so(
    connection: asyncpg.Connection, database: str
) -> None:
    await fill(connection)
    question = diagnosis.depth(CONFIG, REGION, 1, bounds=SMALL)

    (category,) = await ask(connection, question)
    total = await diagnosis.get_total_outbox_count(connection, CONFIG, bounds=SMALL)

    assert category["is_estimate"]
    assert category["depth"] == pytest.approx(ROWS / 2, rel=0.4)
    assert total.is_estimate
    assert total.messages == pytest.approx(ROWS, rel=0.4)
    assert await rows_of(database, question.for_psql()) == [category]


async def test_a_question_reads_a_small_part_of_a_large_table(connection: asyncpg.Connection) -> None:
    count = await fill(connection)
    bounds = Bounds(pages=20, rows=50, counted=50, object_rows=50)

    for question in (
        diagnosis.shards(CONFIG, OUTBOXES, limit=5, bounds=bounds),
        diagnosis.stuck(CONFIG, OUTBOXES, limit=5, bounds=bounds),
        diagnosis.depth(CONFIG, REGION, 1, bounds=bounds),
        diagnosis.messages_of_object(CONFIG, REGION, 1, 7, limit=5, bounds=bounds),
        diagnosis.messages_of_shard(CONFIG, REGION, 0, DEEP, region=None, limit=5),
        diagnosis.messages_of_shard(CONFIG, REGION, 0, -1, region=None, limit=5),
        diagnosis.messages(CONFIG, REGION, limit=50),
        diagnosis.messages(CONFIG, REGION, message_id=7, limit=1),
        diagnosis.messages(CONFIG, REGION, below=ROWS // 2, category=9, limit=5, bounds=bounds),
        diagnosis.messages(CONFIG, REGION, below=ROWS // 2, shard=(0, DEEP), category=9, limit=5, bounds=bounds),
    ):
        assert await pages_read(connection, question) < count / 2, question.about


async def test_a_large_file_with_few_messages_is_counted_exactly(connection: asyncpg.Connection) -> None:
    await fill(connection)
    await connection.execute("DELETE FROM outbox WHERE id % 400 <> 0")
    await connection.execute("VACUUM (TRUNCATE off) outbox")

    rows = await ask(connection, diagnosis.shards(CONFIG, OUTBOXES, limit=1, bounds=SMALL))
    total = await diagnosis.get_total_outbox_count(connection, CONFIG, bounds=SMALL)

    assert await pages(connection) > 5 * SMALL.pages
    assert [(row["shard_identifier"], row["depth"], row["is_estimate"]) for row in rows] == [(DEEP, ROWS / 400, False)]
    assert (total.messages, total.is_estimate) == (ROWS / 400, False)


async def test_dead_rows_are_walked_through_up_to_a_bound(connection: asyncpg.Connection) -> None:
    await fill(connection)
    await connection.execute("DELETE FROM outbox WHERE id % 400 <> 0")

    async def dead_rows_are_known() -> bool:
        if connection.get_server_version().major >= 15:
            await connection.execute("SELECT pg_stat_force_next_flush()")
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        return int(await connection.fetchval("SELECT pg_stat_get_dead_tuples('outbox'::regclass)")) > ROWS / 2

    await eventually(dead_rows_are_known)
    few = Bounds(pages=SMALL.pages, rows=SMALL.rows, dead=1_000)

    exact = await diagnosis.get_total_outbox_count(connection, CONFIG, bounds=SMALL)
    estimate = await diagnosis.get_total_outbox_count(connection, CONFIG, bounds=few)

    assert (exact.messages, exact.is_estimate) == (ROWS / 400, False)
    assert estimate.is_estimate
    assert await pages_read(connection, diagnosis.depth(CONFIG, REGION, 1, bounds=few)) < 2 * SMALL.pages


async def test_the_depth_of_a_stuck_shard_is_counted_up_to_a_bound(connection: asyncpg.Connection) -> None:
    await fill(connection)
    await connection.execute(
        "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, category, object_identifier, message_id)"
        " SELECT 'region', 0, shard_identifier::text, 1, '1', min(id) FROM outbox WHERE shard_identifier < 1003"
        " GROUP BY shard_identifier"
    )

    rows = await ask(connection, diagnosis.stuck(CONFIG, OUTBOXES, limit=20, bounds=SMALL))

    found = {row["shard_identifier"]: (row["depth"], row["is_at_least"]) for row in rows}
    assert found == {DEEP: (100, True), 1000: (5, False), 1001: (5, False), 1002: (5, False)}


async def test_an_object_is_looked_for_among_the_newest_messages(connection: asyncpg.Connection) -> None:
    await fill(connection)

    new = await ask(connection, diagnosis.messages_of_object(CONFIG, REGION, 1, ROWS, limit=5, bounds=SMALL))
    old = await ask(connection, diagnosis.messages_of_object(CONFIG, REGION, 1, 2, limit=5, bounds=SMALL))
    far = await ask(connection, diagnosis.messages_of_object(CONFIG, REGION, 1, 2, limit=5))

    assert [row["object_identifier"] for row in new + far] == [ROWS, 2]
    assert old == []


async def test_a_list_of_messages_goes_on_below_an_id_and_its_filters_add_up(connection: asyncpg.Connection) -> None:
    await fill(connection)

    async def objects(**wanted: Any) -> list[int]:
        found = await ask(connection, diagnosis.messages(CONFIG, REGION, limit=2, bounds=SMALL, **wanted))
        return [row["object_identifier"] for row in found]

    (first,) = await ask(connection, diagnosis.messages(CONFIG, REGION, limit=1))
    assert await objects() == [ROWS, ROWS - 1]
    assert await objects(below=first["id"]) == [ROWS - 1, ROWS - 2]
    assert await objects(message_id=first["id"]) == [ROWS]
    assert await objects(category=2) == [ROWS - 1, ROWS - 3]
    assert await objects(shard=(0, DEEP), below=first["id"]) == [ROWS - 2, ROWS - 4]
    assert await objects(shard=(0, 1000), category=1) == []
    assert await objects(shard=(0, DEEP), category=1, object_identifier=ROWS - 4) == [ROWS - 4]
    assert await objects(object_identifier=2) == [], "it lies below the newest that are looked at"


async def test_payloads_are_read_only_where_they_are_wanted(connection: asyncpg.Connection) -> None:
    await write_many(connection, 1)
    await connection.execute("""UPDATE outbox SET payload = '{"a": 1}', headers = '{"b": 2}'""")

    (bare,) = await ask(connection, diagnosis.messages(CONFIG, REGION, limit=1, payload_bytes_max=0))
    (whole,) = await ask(connection, diagnosis.messages(CONFIG, REGION, limit=1))

    assert (bare["payload"], bare["headers"], bare["payload_size"]) == (None, None, whole["payload_size"])
    assert [query.as_written(whole[name]) for name in ("payload", "headers")] == ['{"a": 1}', '{"b": 2}']


async def test_a_question_ends_after_its_time_and_says_what_else_there_is(
    connection: asyncpg.Connection, database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(query, "TIMEOUT_S", 0.2)
    async with connected(database) as other, other.transaction():
        await other.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")

        with pytest.raises(errors.StatementFailed) as raised:
            await ask(connection, diagnosis.shards(CONFIG, OUTBOXES, limit=5))

    assert raised.value.sqlstate == "57014"
    assert "what --sql prints" in raised.value.hint


async def test_of_very_many_failures_a_part_is_looked_at_and_that_is_said(
    connection: asyncpg.Connection, database: str, capsys: pytest.CaptureFixture[str]
) -> None:
    await connection.execute(
        "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, region_name, category, object_identifier,"
        " message_id, attempts, last_error, first_failed_at, last_failed_at)"
        " SELECT 'region', 0, n / 10, '', 4, n, n, 1, 'no', now(), now() FROM generate_series(1, 30000) AS n"
    )
    few = diagnosis.stuck(CONFIG, [REGION], limit=5, bounds=Bounds(failures=1_000))
    all_ = diagnosis.stuck(CONFIG, [REGION], limit=5, bounds=Bounds(failures=30_000))

    partial, whole = await ask(connection, few), await ask(connection, all_)
    diagnosis_display.show_stuck(partial, [], await diagnosis.now(connection))

    assert [row["is_partial"] for row in partial + whole] == [True] * 5 + [False] * 5
    assert await rows_of(database, few.for_psql()) == partial
    assert await pages_read(connection, few) < await pages_read(connection, all_) / 10
    assert "more objects fail than were looked at" in capsys.readouterr().out


async def test_a_long_list_of_what_is_off_costs_little_and_is_counted(trouble: Trouble) -> None:
    """10 000 entries beside 20 000 messages: compared pair by pair that takes a quarter of a minute."""
    await write_many(trouble.connection, 20_000, shards=20_000)
    await trouble.connection.execute(
        "UPDATE outboxd.option SET value = (SELECT jsonb_agg(n) FROM generate_series(1, 10_000) AS n)"
        " WHERE key = 'outbox.disabled_shards.ORGANIZATION_SCOPE'"
    )

    report = await doctor.examine(check.prepare(lambda: trouble.loaded))
    shards = await run("shards", "--limit", "1000", config=trouble.file)

    assert [each.level for each in report.found["lag"] if each.subject == "outbox region"] == ["ok"]
    [option] = [each.text for each in report.found["switches"] if each.subject.startswith("option")]
    assert " and 9,995 more, by grace" in option
    assert "  … and 9,98" in shards.stdout
    assert "more: outboxd pause --list" in shards.stdout
    off = shards.stdout.partition("switched off now:")[2].splitlines()
    assert len([line for line in off if line.startswith("  ")]) <= 2 * 21
    question = diagnosis.shards(trouble.config, trouble.config.outboxes, limit=1000)
    await fetch(trouble.connection, question, "asking", timeout_s=3)
