"""What backfills may write: no 60 seconds hold more than the rate, and without a budget no table is touched."""

from __future__ import annotations

import asyncio
import contextlib
import time
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from outboxd.backfill import Backfill, backfill_outboxes_for
from outboxd.budget import SPENDING_CLASS, Pace
from tests.drains import CONTROL, REGION, connected, write_many
from tests.eventually import eventually
from tests.walks import (
    create_members,
    let_a_minute_pass,
    let_time_pass,
    model,
    objects,
    one_batch,
    progress_of,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg

TABLES = ("public.first", "public.second")


async def create_tables(connection: asyncpg.Connection, count: int) -> None:
    for table in TABLES:
        await create_members(connection, count, table=table)


@pytest.mark.parametrize("paced", [True, False])
async def test_a_rate_of_zero_reports_and_walks_nothing(
    database: str, connection: asyncpg.Connection, paced: bool
) -> None:
    await create_members(connection, 3)
    await connection.execute("INSERT INTO outboxd.backfill_watermark VALUES ('organizationmember', '2', 1)")
    async with walking(database, with_models(backfills_per_minute=0)) as backfill:
        assert not await backfill.tick(paced=paced)
        assert progress_of(backfill).condition == "paused"
        assert (progress_of(backfill).low_bound, progress_of(backfill).target) == ("2", 1)

        await connection.execute("UPDATE outboxd.backfill_watermark SET low_bound = '3'")
        assert not await backfill.tick(paced=paced)
        assert progress_of(backfill).low_bound == "3", "it is looked at every tick"

    assert await watermark(connection) == ("3", 1)
    assert await objects(connection) == []


async def test_as_many_scheduled_rows_as_the_rate_leave_nothing(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 3)
    await write_many(connection, 5)
    async with walking(database, with_models(backfills_per_minute=5)) as backfill:
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "budget"
        assert await watermark(connection) is None

        await connection.execute("DELETE FROM outbox WHERE object_identifier > 2")
        assert await backfill.tick(paced=False)
        assert progress_of(backfill).rows == 2, "rate 5 less 3 scheduled rows"


@pytest.mark.parametrize("size", [0, -1, -(2**40)])
async def test_a_batch_of_no_rows_never_looks_like_the_end(
    database: str, connection: asyncpg.Connection, size: int
) -> None:
    await create_members(connection, 3)
    async with walking(database) as backfill:
        assert await one_batch(backfill, size) is None
        assert await one_batch(backfill, 10, messages=size) is None
        assert progress_of(backfill).condition == "budget"

    assert await watermark(connection) in (None, ("0", 1))
    assert await objects(connection) == []


async def test_more_scheduled_rows_than_the_rate_are_no_negative_batch(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_members(connection, 3)
    async with walking(database) as backfill:
        await backfill.look()
        backfill.left = 100
        assert not await backfill_outboxes_for(backfill, "monolith", scheduled_count=10**9, max_batch_rate=100)

    assert await watermark(connection) in (None, ("0", 1))


async def test_only_the_models_of_the_silo_are_walked(database: str, connection: asyncpg.Connection) -> None:
    await create_tables(connection, 3)
    config = with_models(
        model(table=TABLES[0]),
        model(table=TABLES[1], outbox="control", region_names=["us"]),
        outboxes=(REGION, CONTROL),
    )
    async with walking(database, config) as backfill:
        await backfill.look()
        backfill.left = 100
        assert await backfill_outboxes_for(backfill, "control", scheduled_count=0, max_batch_rate=100)

    assert await objects(connection) == []
    assert await objects(connection, "control_outbox") == [1, 2, 3]


async def test_what_was_spent_counts_for_the_next_process(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 100)
    config = with_models(backfills_per_minute=10)
    for seconds, expected in [(0, 10), (30, 10), (29, 10), (2, 20)]:
        await let_time_pass(connection, seconds)
        await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 day'")
        async with walking(database, config) as backfill:
            await backfill.spend_a_minute()
        assert len(await objects(connection)) == expected


async def test_old_spending_is_forgotten(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 30)
    async with walking(database, with_models(backfills_per_minute=10)) as backfill:
        for _ in range(3):
            await one_batch(backfill, 10)
            await let_time_pass(connection, 601)

    assert await connection.fetchval("SELECT count(*) FROM outboxd.backfill_spending") == 1


def test_the_pace_spreads_the_rate_and_saves_up_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [50.0]
    monkeypatch.setattr("outboxd.budget.time.monotonic", lambda: clock[0])
    pace = Pace()
    assert pace.allowance(600, need=1) == 10
    pace.spend(10)
    clock[0] += 0.05
    assert pace.allowance(600, need=1) == 0
    clock[0] += 0.95
    assert pace.allowance(600, need=1) == 10
    clock[0] += 3600
    assert pace.allowance(600, need=1) == 50, "five seconds' worth"
    pace.spend(50)
    clock[0] += 3600
    assert pace.allowance(600, need=70) == 70, "or what cannot be written in part"


@dataclass(frozen=True)
class Tick:
    """One daemon ticks, or both at once; or (`rivals`) each wants the whole minute for one table. Then time passes."""

    who: tuple[int, ...]
    paced: bool
    then_s: int
    rivals: bool = False


who = st.sampled_from([(0,), (1,), (0, 1), (0, 1)])
pauses = st.sampled_from([0, 1, 1, 7, 20, 59, 61])
ticks = st.builds(Tick, who, st.booleans(), pauses, st.booleans())


@dataclass
class Minutes:
    """
    Two daemons on two tables, and when messages were written: by the real clock, and what the test adds to it.

    Attributes:
        written: When each tick began and ended, in seconds, and how many messages came of it.
    """

    connection: asyncpg.Connection
    daemons: list[Backfill]
    added_s: float = 0.0
    seen: int = 0
    written: list[tuple[float, float, int]] = field(default_factory=list)

    def now_s(self) -> float:
        return time.monotonic() + self.added_s

    async def take(self, tick: Tick) -> None:
        began_s = self.now_s()
        await asyncio.gather(*(self._spend(number, tick) for number in tick.who))
        total: int = await self.connection.fetchval("SELECT count(*) FROM outbox")
        self.written.append((began_s, self.now_s(), total - self.seen))
        self.seen = total
        await let_time_pass(self.connection, tick.then_s)
        await self.connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 day'")
        self.added_s += tick.then_s

    async def _spend(self, number: int, tick: Tick) -> None:
        daemon = self.daemons[number]
        if tick.rivals:
            rate = daemon.config.backfill.backfills_per_minute
            await one_batch(daemon, rate, TABLES[number], messages=rate)
        else:
            await daemon.tick(paced=tick.paced)

    def most_in_a_minute(self) -> int:
        return max(
            sum(count for began_s, ended_s, count in self.written if first_s <= began_s and ended_s < first_s + 60)
            for first_s, _, _ in self.written
        )


@settings(
    max_examples=25,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
)
@given(plan=st.lists(ticks, min_size=5, max_size=15), rate=st.sampled_from([7, 60, 500]))
async def test_no_sixty_seconds_hold_more_than_the_rate(
    database: str, connection: asyncpg.Connection, plan: list[Tick], rate: int
) -> None:
    if await connection.fetchval("SELECT to_regclass($1)", TABLES[0]) is None:
        await create_tables(connection, 10_000)
    await connection.execute("TRUNCATE outbox, outboxd.backfill_watermark, outboxd.backfill_spending")
    config = with_models(*(model(table=table) for table in TABLES), backfills_per_minute=rate)
    async with contextlib.AsyncExitStack() as stack:
        daemons = [await stack.enter_async_context(walking(database, config)) for _ in range(2)]
        minutes = Minutes(connection, daemons)
        for tick in (Tick((0,), paced=False, then_s=1), *plan):
            await minutes.take(tick)

    assert 0 < minutes.most_in_a_minute() <= rate
    walked = [len(await keys_done(connection, table)) for table in TABLES]
    assert minutes.seen == sum(walked)


async def keys_done(connection: asyncpg.Connection, table: str) -> list[int]:
    """Tell the keys below the watermark of a table; each of them has a message."""
    low_bound, _ = await watermark(connection, table) or ("0", 1)
    return [row[0] for row in await connection.fetch(f"SELECT id FROM {table} WHERE id < $1", int(low_bound))]


async def test_two_daemons_that_spend_at_once_on_two_tables_keep_the_rate_together(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_tables(connection, 1_000)
    config = with_models(*(model(table=table) for table in TABLES), backfills_per_minute=100)
    async with walking(database, config) as one, walking(database, config) as other:
        await one.look()
        await other.look()
        await asyncio.gather(
            one_batch(one, 80, TABLES[0], messages=100),
            one_batch(other, 80, TABLES[1], messages=100),
        )

    assert len(await objects(connection)) == 100


async def test_a_batch_waits_for_what_another_one_is_spending(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 10)
    async with walking(database) as backfill, connected(database) as other:
        async with other.transaction():
            await other.execute("SELECT pg_advisory_xact_lock($1, hashtext('outboxd'))", SPENDING_CLASS)
            batch = asyncio.create_task(one_batch(backfill, 10, messages=10))
            await eventually(lambda: waits_for_a_lock(connection))
            await other.execute(
                "INSERT INTO outboxd.backfill_spending (table_name, messages) VALUES ('organizationmember', 8)"
            )
        await batch

    assert await objects(connection) == [1, 2]


async def waits_for_a_lock(connection: asyncpg.Connection) -> bool:
    return bool(await connection.fetchval("SELECT count(*) FROM pg_locks WHERE NOT granted"))


async def test_a_run_from_cron_writes_one_minute_s_allowance_however_long_it_takes(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    await create_members(connection, 100)
    async with walking(database, with_models(backfills_per_minute=10)) as backfill:
        tick = backfill.tick

        async def slow_tick(**options: bool) -> bool:
            written = await tick(**options)
            await let_a_minute_pass(connection)
            return written

        monkeypatch.setattr(backfill, "tick", slow_tick)
        await backfill.spend_a_minute()

    assert len(await objects(connection)) == 10
