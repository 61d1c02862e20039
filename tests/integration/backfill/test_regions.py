"""An outbox that shards by region: one message for each row and region, and options that leave regions out."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import pytest

from outboxd.options import Gates
from tests.drains import CONTROL, REGION
from tests.walks import (
    create_members,
    let_a_minute_pass,
    let_time_pass,
    model,
    objects,
    one_batch,
    progress_of,
    set_option,
    walking,
    watermark,
    with_models,
)

if TYPE_CHECKING:
    import asyncpg

    from outboxd.backfill import Backfill
    from outboxd.config import Config

OPTION = "outbox_replication.organizationmember.backfill.target_regions"
NAMED: dict[str, Any] = {"region_names": ["de", "us"]}
BY_ROW: dict[str, Any] = {"region_names_sql": "region -- those of the row"}

by_either_way = pytest.mark.parametrize("regions", [NAMED, BY_ROW], ids=["named", "by row"])


def control(*, rate: int = 10_000, **values: Any) -> Config:
    return with_models(model(outbox="control", **values), outboxes=(REGION, CONTROL), backfills_per_minute=rate)


async def create_regional_members(connection: asyncpg.Connection, *regions: Sequence[str | None] | None) -> None:
    """Create members with the keys 1, 2, …, each with these regions."""
    await create_members(connection, 0)
    for number, names in enumerate(regions, 1):
        await connection.execute("INSERT INTO organizationmember VALUES ($1, 1, '', $2)", number, names)


async def written(connection: asyncpg.Connection) -> list[tuple[int, str]]:
    rows = await connection.fetch("SELECT object_identifier, region_name FROM control_outbox ORDER BY 1, 2")
    return [(row[0], row[1]) for row in rows]


async def walk_control_to_the_end(backfill: Backfill, connection: asyncpg.Connection) -> int:
    """Tick, a minute each time; returns how many ticks wrote something."""
    ticks = 0
    while await backfill.tick(paced=False):
        await let_a_minute_pass(connection, "control_outbox")
        ticks += 1
    return ticks


async def test_each_row_goes_to_each_named_region(database: str, connection: asyncpg.Connection) -> None:
    await create_members(connection, 5)
    async with walking(database, control(**NAMED, rate=5)) as backfill:
        ticks = await walk_control_to_the_end(backfill, connection)
        assert (progress_of(backfill).rows, progress_of(backfill).messages) == (5, 10)

    assert await written(connection) == [(key, region) for key in range(1, 6) for region in ("de", "us")]
    assert ticks == 3, "two rows, four messages of five"
    assert await watermark(connection) == ("0", 2)


async def test_each_row_goes_to_the_regions_that_it_names(database: str, connection: asyncpg.Connection) -> None:
    await create_regional_members(connection, ["us"], None, [], ["us", "de", "us", None], [None], ["jp"])
    async with walking(database, control(**BY_ROW)) as backfill:
        await walk_control_to_the_end(backfill, connection)
        assert (progress_of(backfill).rows, progress_of(backfill).messages) == (6, 4)

    assert await written(connection) == [(1, "us"), (4, "de"), (4, "us"), (6, "jp")]
    assert await watermark(connection) == ("0", 2)


@by_either_way
async def test_an_option_limits_the_regions(
    database: str, connection: asyncpg.Connection, regions: dict[str, Any]
) -> None:
    await create_regional_members(connection, *[["us", "de"]] * 3)
    await set_option(connection, OPTION, '["us", "nowhere"]')
    async with walking(database, control(**regions)) as backfill:
        await walk_control_to_the_end(backfill, connection)

    assert await written(connection) == [(1, "us"), (2, "us"), (3, "us")]
    assert await watermark(connection) == ("0", 2)


@by_either_way
@pytest.mark.parametrize("value", ["[]", '"us"', "{}"])
async def test_without_target_regions_the_walk_waits(
    database: str, connection: asyncpg.Connection, regions: dict[str, Any], value: str
) -> None:
    await create_regional_members(connection, ["us"], ["de"])
    await set_option(connection, OPTION, value)
    async with walking(database, control(**regions)) as backfill:
        assert not await backfill.tick(paced=False)
        assert progress_of(backfill).condition == "waiting"
        assert await watermark(connection) is None

        await connection.execute("DELETE FROM outboxd.option")
        await backfill.switchboard.refresh()
        await walk_control_to_the_end(backfill, connection)

    assert set(await objects(connection, "control_outbox")) == {1, 2}


@by_either_way
async def test_regions_that_go_away_between_look_and_batch_do_not_let_rows_pass(
    database: str, connection: asyncpg.Connection, regions: dict[str, Any]
) -> None:
    await create_regional_members(connection, ["us"], ["de"])
    async with walking(database, control(**regions)) as backfill:
        backfill.switchboard.gates = Gates(regions={"organizationmember": ()})
        assert await one_batch(backfill, 10) is None

    assert await watermark(connection) in (None, ("0", 1))


async def test_a_batch_by_row_ends_before_the_row_that_is_too_much(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_regional_members(connection, ["us"], ["us", "de", "jp"], ["us", "de"], [], ["us"])
    async with walking(database, control(**BY_ROW, rate=4)) as backfill:
        batch = await one_batch(backfill, 10, messages=5)
        assert batch is not None
        assert (batch.count, batch.messages, batch.up) == (2, 4, "3")
        batch = await one_batch(backfill, 10, messages=6)
        assert batch is not None
        assert (batch.count, batch.messages) == (2, 2), "four of the six are spent; a row without regions costs nothing"
        await let_a_minute_pass(connection, "control_outbox")
        await walk_control_to_the_end(backfill, connection)

    assert len(await written(connection)) == 7


@by_either_way
async def test_a_row_with_more_regions_than_a_tick_may_write_is_saved_up_for(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, regions: dict[str, Any]
) -> None:
    """At 60 a minute a tick may write one message. Another table, which needs no more, must not eat it all."""
    clock = [1000.0]
    monkeypatch.setattr("outboxd.budget.time.monotonic", lambda: clock[0])
    names = [f"r{number}" for number in range(9)]
    if "region_names" in regions:
        regions = {"region_names": names}
    await create_regional_members(connection, names)
    await create_members(connection, 1_000, table="public.other")
    config = with_models(
        model(outbox="control", **regions),
        model(table="public.other"),
        outboxes=(REGION, CONTROL),
        backfills_per_minute=60,
    )
    async with walking(database, config) as backfill:
        for _ in range(40):
            clock[0] += 1
            await backfill.tick(paced=True)
            await let_time_pass(connection, 1)
            await connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 day'")

    assert len(await written(connection)) == 9
    assert 20 <= len(await objects(connection)) <= 31, "the other one takes its turns"


async def test_a_row_that_alone_makes_more_than_the_rate_breaks_its_table_and_no_other(
    database: str, connection: asyncpg.Connection
) -> None:
    await create_regional_members(connection, ["us"], [f"r{number}" for number in range(50)])
    await create_members(connection, 5, table="public.other")
    config = with_models(
        model(outbox="control", **BY_ROW),
        model(table="public.other"),
        outboxes=(REGION, CONTROL),
        backfills_per_minute=20,
    )
    async with walking(database, config) as backfill:
        for _ in range(4):
            await backfill.tick(paced=False)
            await let_a_minute_pass(connection, "outbox", "control_outbox")
        assert progress_of(backfill, "public.other").condition == "finished"
        progress = progress_of(backfill)
        assert progress.condition == "broken"
        assert "50 messages" in progress.error
        assert "20 a minute" in progress.error


async def test_a_row_that_loses_regions_is_no_longer_waited_for(database: str, connection: asyncpg.Connection) -> None:
    await create_regional_members(connection, [f"r{number}" for number in range(8)])
    async with walking(database, control(**BY_ROW, rate=10)) as backfill:
        assert await one_batch(backfill, 5, messages=5) is None
        assert progress_of(backfill).need == 8
        await connection.execute("UPDATE organizationmember SET region = '{us}'")
        assert await one_batch(backfill, 5, messages=5) is not None

    assert await written(connection) == [(1, "us")]
