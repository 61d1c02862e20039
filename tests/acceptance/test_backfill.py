"""Backfills of the real program: beside the live traffic, through SIGKILL, from cron."""

from __future__ import annotations

import contextlib
import json
import signal
from typing import TYPE_CHECKING

from outboxd.budget import SPENDING_CLASS
from outboxd.embedded import embedded_valkey
from outboxd.session import connect
from tests.eventually import eventually

if TYPE_CHECKING:
    from tests.acceptance.installation import Installation

MODEL = """
[[model]]
table = "{table}"
outbox = "main"
category = "UPDATE"
shard_identifier = "account_id"
where_sql = "{where}"

[backfill]
backfills_per_minute = {rate}
state = "{state}"
"""
WALKED = "SELECT count(*) FROM outbox"


async def declare(
    installation: Installation,
    *,
    rows: int,
    rate: int = 100_000,
    where: str = "",
    state: str = "postgres",
    **top: str,
) -> None:
    """Give the installation a table of members, five an account, and a model of it."""
    await installation.connection.execute(
        "CREATE TABLE member (id bigint PRIMARY KEY, account_id bigint);"
        f"INSERT INTO member SELECT n, n / 5 FROM generate_series(1, {rows}) AS n"
    )
    installation.categories += MODEL.format(table="member", where=where, rate=rate, state=state)
    installation.configure(**top)


async def low_bound(installation: Installation) -> tuple[str, int] | None:
    row = await installation.connection.fetchrow("SELECT low_bound, version FROM outboxd.backfill_watermark")
    return None if row is None else (row[0], row[1])


def objects(installation: Installation) -> list[int]:
    return sorted(line["object"] for line in installation.deliveries())


async def hold_deliveries(installation: Installation) -> None:
    """Keep what is written in the outbox, to be counted."""
    await installation.connection.execute(
        "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_shards.ACCOUNT', $1::jsonb)",
        json.dumps(list(range(1_000))),
    )


async def test_the_daemon_walks_a_table_beside_the_live_traffic(installation: Installation) -> None:
    await declare(installation, rows=500)
    async with installation.ready_daemon() as daemon:
        live = await installation.insert([7_000], objects=[1])
        await installation.until(lambda: set(live) <= set(installation.delivered()), by=daemon)
        await installation.until(lambda: len(objects(installation)) == 501, by=daemon)
        assert await low_bound(installation) == ("0", 2)
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0

    assert [event["condition"] for event in daemon.events("backfill.changed")] == ["finished"]
    assert objects(installation) == sorted([1, *range(1, 501)])
    assert await installation.left_behind() == []


async def test_sigkill_in_mid_batch_neither_skips_nor_repeats_a_row(installation: Installation) -> None:
    """A lock on one row of a table that where_sql reads holds the second batch open."""
    await hold_deliveries(installation)
    await installation.connection.execute("CREATE TABLE gate (id int PRIMARY KEY); INSERT INTO gate VALUES (1)")
    await installation.connection.execute(
        "CREATE FUNCTION passes(id bigint) RETURNS boolean LANGUAGE plpgsql AS $$ BEGIN"
        " IF id = 3000 THEN PERFORM 1 FROM gate FOR UPDATE; END IF; RETURN true; END $$"
    )
    await declare(installation, rows=4_000, where="passes(id)")
    locker = await connect(installation.dsn, name="locker")
    try:
        transaction = locker.transaction()
        await transaction.start()
        await locker.execute("SELECT FROM gate FOR UPDATE")
        async with installation.ready_daemon() as daemon:
            await installation.until(lambda: holds_batch(installation), by=daemon)
            before = await low_bound(installation)
            assert before is not None
            daemon.signal(signal.SIGKILL)
            assert await daemon.wait() == -signal.SIGKILL
        assert await installation.count(WALKED) == (0 if before == ("0", 1) else int(before[0]) - 1)
        await transaction.rollback()
    finally:
        locker.terminate()

    async with installation.ready_daemon() as daemon:
        await installation.until(lambda: is_finished(installation), by=daemon)

    rows = await installation.connection.fetch("SELECT object_identifier FROM outbox")
    assert sorted(row[0] for row in rows) == list(range(1, 4_001))


async def holds_batch(installation: Installation) -> bool:
    waiting = "application_name = 'outboxd: backfill' AND wait_event_type = 'Lock'"
    return await installation.count(f"SELECT count(*) FROM pg_stat_activity WHERE {waiting}") == 1


async def is_finished(installation: Installation) -> bool:
    return await low_bound(installation) == ("0", 2)


async def test_sigkill_again_and_again_writes_each_row_once(installation: Installation) -> None:
    await hold_deliveries(installation)
    await declare(installation, rows=3_000, rate=60_000)
    for _ in range(3):
        before = await installation.count(WALKED)
        async with installation.daemon() as daemon:

            async def has_moved(before: int = before) -> bool:
                return await installation.count(WALKED) > before or await is_finished(installation)

            await installation.until(has_moved, by=daemon)
            daemon.signal(signal.SIGKILL)
            await daemon.wait()
    async with installation.ready_daemon() as daemon:
        await installation.until(lambda: is_finished(installation), by=daemon)

    rows = await installation.connection.fetch("SELECT object_identifier FROM outbox")
    assert sorted(row[0] for row in rows) == list(range(1, 3_001))


async def test_once_drains_then_spends_a_minute_s_allowance(installation: Installation) -> None:
    """What was just written waits for the next run; a second run within the minute has what the first one left."""
    await declare(installation, rows=25, rate=10)
    await installation.insert([7_000], objects=[1])

    first = await installation.once()
    assert first["backfilled"] == {"member": 10}
    assert (first["delivered"], first["remaining_due"]) == (1, 0)
    assert await installation.count() == 10

    second = await installation.once()
    assert second["backfilled"] == {}
    assert second["delivered"] == 10, "each row is an object of its own"

    await installation.connection.execute(
        "UPDATE outboxd.backfill_spending SET spent_at = spent_at - interval '61 seconds'"
    )
    third = await installation.once()
    assert third["backfilled"] == {"member": 10}
    assert await low_bound(installation) == ("21", 1)


async def test_once_takes_part_of_the_minute_when_part_of_it_is_spent(installation: Installation) -> None:
    await declare(installation, rows=25, rate=10)
    await installation.connection.execute(
        "INSERT INTO outboxd.backfill_spending (table_name, messages) VALUES ('member', 7)"
    )

    assert (await installation.once())["backfilled"] == {"member": 3}


async def test_once_says_nothing_of_backfills_where_there_are_none(installation: Installation) -> None:
    assert (await installation.once())["backfilled"] == {}


async def test_once_with_redis_that_is_away_drains_all_the_same(installation: Installation) -> None:
    await declare(installation, rows=25, state="redis", redis_url="redis://127.0.0.1:1/0")
    ids = await installation.insert([1, 2])

    done = await installation.run("--once", "--json")

    assert done.returncode == 69
    assert "redis" in done.stderr
    assert json.loads(done.stdout)["backfilled"] == {}
    assert sorted(installation.delivered()) == ids


async def test_a_quiet_run_says_nothing_of_a_walk_that_goes_well(installation: Installation) -> None:
    await declare(installation, rows=5)

    done = await installation.run("--once", "--quiet")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert await installation.count() == 5


async def test_the_summary_tells_what_was_walked(installation: Installation) -> None:
    await declare(installation, rows=5)

    done = await installation.run("--once")

    assert done.stdout_lines[-1] == "backfilled 5 rows of member"


async def test_a_daemon_with_redis_walks_and_leaves_the_key_finished(installation: Installation) -> None:
    async with embedded_valkey() as url:
        await declare(installation, rows=300, state="redis", redis_url=url)
        async with installation.ready_daemon() as daemon:
            await eventually(lambda: len(objects(installation)) == 300)
            await daemon.wait_for_event("backfill.changed")
            daemon.signal(signal.SIGTERM)
            assert await daemon.wait() == 0

    assert len(daemon.events("backfill.watermark_missing")) == 1
    assert daemon.events("backfill.unavailable") == []


async def test_a_second_signal_ends_a_run_from_cron_in_mid_batch(installation: Installation) -> None:
    await declare(installation, rows=1_000, where="pg_sleep(0.02 + 0 * id) IS NOT NULL")
    async with installation.daemon("--once") as run:

        async def is_spending() -> bool:
            statement = "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid = $1"
            return bool(await installation.connection.fetchval(statement, SPENDING_CLASS))

        await installation.until(is_spending, by=run)

        def has_noticed() -> bool:
            if run.events("daemon.stopping_hard") or run.returncode is not None:
                return True
            with contextlib.suppress(ProcessLookupError):
                run.signal(signal.SIGTERM)  # again and again: two that come at once are one
            return False

        await eventually(has_noticed)
        assert await run.wait() == 1
        assert run.events("daemon.stopping_hard")[0]["reason"] == "second signal"

    assert await installation.count() == 0
