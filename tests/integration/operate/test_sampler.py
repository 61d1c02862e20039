"""What gauges say of tables: exact where it is cheap, estimated or bounded where it is not, old rather than wrong."""

from __future__ import annotations

import asyncio
import contextlib
import time
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit, urlunsplit

import msgspec
import pytest
import structlog.testing
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.parser import text_string_to_metric_families

from outboxd import Discard, budget, sampler, session
from outboxd.config import BackfillConfig
from outboxd.metrics import Collector
from outboxd.options import Switches
from outboxd.sampler import Sample, Sampler
from outboxd.stall import StallWatch
from tests.drains import (
    CONTROL,
    REGION,
    Recorder,
    configure,
    connected,
    draining,
    failing,
    failures,
    until_empty,
    write,
    write_many,
)
from tests.eventually import PATIENCE_S, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd.config import Config
    from outboxd.pipeline import Pipeline
    from tests.drains import Receivers

LATER_S = 3_600.0
HORIZON = {"outboxd_oldest_snapshot_transactions", "outboxd_oldest_snapshot_seconds"}


@contextlib.asynccontextmanager
async def sampled(
    dsn: str, receivers: Receivers | None = None, config: Config | None = None
) -> AsyncIterator[tuple[Pipeline, Sampler]]:
    """A pipeline whose outboxes are all found, and a sampler that has not measured yet."""
    async with draining(dsn, receivers or Recorder(), config) as pipeline:
        async with asyncio.timeout(PATIENCE_S):
            await pipeline.ready()
        await eventually(lambda: all(branch.outbox is not None for branch in pipeline.branches))
        made = Sampler(pipeline)
        try:
            yield pipeline, made
        finally:
            await made.session.close()


async def sample(made: Sampler, outbox: str = "region") -> Sample:
    await made.measure()
    return made.samples[outbox]


def exposed(pipeline: Pipeline, made: Sampler) -> dict[tuple[str, str], float]:
    """Every sample of the page, by its name and its label `outbox`."""
    registry = CollectorRegistry()
    registry.register(Collector(pipeline, made, StallWatch(lambda: pipeline.live.registry)))
    page = generate_latest(registry).decode()
    return {
        (one.name, one.labels.get("outbox", "")): one.value
        for family in text_string_to_metric_families(page)
        for one in family.samples
    }


async def test_a_small_table_is_counted_exactly(database: str, connection: asyncpg.Connection) -> None:
    async with sampled(database) as (_, made):
        empty = await sample(made)
        assert (empty.messages, empty.depth, empty.lag_s) == (0, 0, 0)
        for shard, count in ((1, 1), (2, 5), (3, 2)):
            for obj in range(count):
                await write(connection, shard=shard, obj=obj, due_in_s=LATER_S)

        taken = await sample(made)
        assert (taken.messages, taken.depth, taken.failing_shards, taken.dead_letters) == (8, 5, 0, 0)
        assert taken.bytes == await connection.fetchval("SELECT pg_total_relation_size('outbox')")


@pytest.fixture
def few_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    """A tenth of a table of 20 000 rows."""
    monkeypatch.setattr(sampler, "PAGES_MAX", 30)


@pytest.mark.usefixtures("few_pages")
async def test_a_large_table_is_estimated_and_its_deep_shard_found_and_counted(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 15_000, shards=7_500, due_in_s=LATER_S)
    await connection.execute("UPDATE outbox SET shard_identifier = -1 WHERE object_identifier BETWEEN 5000 AND 7999")
    async with sampled(database) as (_, made):
        taken = await sample(made)

    assert taken.depth == 3_000
    assert 7_500 < taken.messages < 30_000
    assert taken.messages != 15_000  # a count


@pytest.mark.usefixtures("few_pages")
async def test_many_small_shards_on_one_page_are_not_taken_for_deep_ones(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, scheduled_for)"
        " SELECT 0, n / 2, 1, n, now() + interval '1 hour' FROM generate_series(0, 19999) AS n"
    )
    async with sampled(database) as (_, made):
        assert (await sample(made)).depth == 2


async def test_depth_and_counts_go_no_further_than_their_bounds(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "SHARD_ROWS_MAX", 10)
    monkeypatch.setattr(sampler, "ROWS_COUNTED_MAX", 3)
    await write_many(connection, 50, due_in_s=LATER_S)
    for shard in range(5):
        await write(connection, shard=10 + shard)
    async with sampled(database, Recorder(failing())) as (_, made):
        await eventually(lambda: _count(connection, "failure", 5))
        taken = await sample(made)

    assert (taken.messages, taken.depth, taken.failing_shards) == (55, 10, 3)


async def _count(connection: asyncpg.Connection, table: str, count: int) -> bool:
    return bool(await connection.fetchval(f"SELECT count(*) = $1 FROM outboxd.{table}", count))


async def test_failing_shards_are_counted_and_not_their_objects(database: str, connection: asyncpg.Connection) -> None:
    for shard, obj in ((1, 1), (1, 2), (2, 1)):
        await write(connection, shard=shard, obj=obj, category="SKIPPING")
    await write(connection, table="control_outbox", region="eu")
    async with sampled(database, Recorder(failing()), configure(REGION, CONTROL)) as (_, made):
        await eventually(lambda: _count(connection, "failure", 4))
        await made.measure()

        assert [made.samples[name].failing_shards for name in ("region", "control")] == [2, 1]
    assert len(await failures(connection)) == 4


async def test_a_shard_in_which_thousands_fail_hides_no_other(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, category, object_identifier, message_id)"
        " SELECT 'region', 0, CASE WHEN n <= 10000 THEN '0' ELSE n::text END, 4, n, n"
        " FROM generate_series(1, 10050) AS n"
    )
    async with sampled(database) as (_, made):
        assert (await sample(made)).failing_shards == 51


async def test_dead_letters_are_counted(database: str, connection: asyncpg.Connection) -> None:
    for shard in range(3):
        await write(connection, shard=shard)

    def refuse(_message: object) -> None:
        raise Discard("not wanted")

    async with sampled(database, Recorder(refuse)) as (_, made):
        await until_empty(connection)
        taken = await sample(made)

    assert (taken.dead_letters, taken.messages) == (3, 0)


async def test_dead_tuples_are_those_of_the_server_s_statistics(database: str, connection: asyncpg.Connection) -> None:
    async with sampled(database) as (_, made):
        await write_many(connection, 40, shards=4)
        await until_empty(connection)

        async def seen() -> bool:
            return (await sample(made)).dead_tuples == 40

        await eventually(seen)


async def test_lag_is_the_age_of_what_is_neither_paused_nor_failing(
    database: str, connection: asyncpg.Connection
) -> None:
    async with sampled(database, Recorder(failing(1))) as (pipeline, made):
        pipeline.switchboard.now = pipeline.live.switches = Switches(shards=frozenset({(0, "2", None)}))
        await write(connection, shard=1, obj=1)
        await write(connection, shard=2, obj=2)
        await eventually(lambda: _count(connection, "failure", 1))
        await connection.execute(
            "UPDATE outbox SET date_added = now() - interval '100 s', scheduled_for = now() - interval '50 s'"
        )

        assert (await sample(made)).lag_s == 0
        pipeline.switchboard.now = Switches()  # for whoever measures; the drain still holds it
        assert (await sample(made)).lag_s == pytest.approx(50, abs=10)


async def test_lag_does_not_depend_on_what_backfills_may_write(database: str, connection: asyncpg.Connection) -> None:
    """The oldest is neither the first that a count meets, by shard, nor among the first rows of the table."""
    await write_many(connection, budget.FIRST_ROWS + 10, shards=1)
    await write(connection, shard=999)
    await connection.execute(
        "UPDATE outbox SET date_added = now() - interval '1 hour' WHERE id = (SELECT max(id) FROM outbox)"
    )
    config = msgspec.structs.replace(configure(), backfill=BackfillConfig(backfills_per_minute=0))
    gate = asyncio.Event()
    async with sampled(database, Recorder(lambda _: gate.wait()), config) as (_, made):
        taken = await sample(made)
        gate.set()

    assert 3_600 <= taken.lag_s < 3_660


async def test_a_locked_table_keeps_its_old_sample_which_ages_and_the_others_are_renewed(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(budget, "LOOK_S_MAX", LATER_S)  # a look that took long is not believed for long either
    async with sampled(database, config=configure(REGION, CONTROL)) as (pipeline, made):
        await write(connection, due_in_s=LATER_S)
        await made.measure()
        before = dict(made.samples)
        with structlog.testing.capture_logs() as logs:
            async with connection.transaction():
                await connection.execute("LOCK TABLE outbox IN ACCESS EXCLUSIVE MODE")
                await made.measure()
                await made.measure()
                first = exposed(pipeline, made)
                second = exposed(pipeline, made)
            assert made.samples["region"] is before["region"]
            assert made.samples["control"].taken_at > before["control"].taken_at
            await made.measure()
            assert made.samples["region"].taken_at > before["region"].taken_at

    said = [line for line in logs if line["event"] == "metrics.not_sampled"]
    assert [(line["outbox"], "lock timeout" in line["error"]) for line in said] == [("region", True)]
    age = ("outboxd_sample_age_seconds", "region")
    assert second[age] > first[age] > first["outboxd_sample_age_seconds", "control"]
    assert first["schedule_batch_total_outbox_count", "region"] == 1


async def test_a_database_that_is_away_is_said_once_and_the_old_samples_stay(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sampled(database) as (_, made):
        before = await sample(made)
        made.session.terminate()
        monkeypatch.setattr(made.session, "_dsn", lambda: "postgresql://nobody@127.0.0.1:1/none")
        with structlog.testing.capture_logs() as logs:
            await made.measure()
            await made.measure()
        assert made.samples["region"] is before
    said = [line for line in logs if line["event"] == "metrics.not_sampled"]
    assert [line["outbox"] for line in said] == [None]


async def test_an_outbox_without_a_table_has_no_sample(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("DROP TABLE control_outbox")
    async with draining(database, Recorder(), configure(REGION, CONTROL)) as pipeline:
        await eventually(lambda: pipeline.branches[0].outbox is not None)
        made = Sampler(pipeline)
        await made.measure()
        await made.session.close()

        assert set(made.samples) == {"region"}


async def test_the_horizon_is_the_oldest_snapshot_that_somebody_holds(
    database: str, connection: asyncpg.Connection
) -> None:
    async with sampled(database) as (_, made), connected(database) as other:
        began_at = time.monotonic()
        async with other.transaction(isolation="repeatable_read"):
            await other.fetchval("SELECT count(*) FROM outbox")
            for _number in range(20):
                await write(connection, due_in_s=LATER_S)
            await made.measure()
            assert made.horizon is not None
            assert made.horizon.transactions >= 20
            assert 0 < made.horizon.seconds <= time.monotonic() - began_at + 1

        async def over() -> bool:
            await made.measure()
            return made.horizon is not None and made.horizon.seconds == 0

        await eventually(over)


@pytest.fixture
async def plain_role(database: str, connection: asyncpg.Connection) -> AsyncIterator[str]:
    """The DSN of a role that may do what the daemon does, and may not look at the sessions of others."""
    role = f"plain_{connection.get_server_pid()}"
    await connection.execute(
        f"CREATE ROLE {role} LOGIN PASSWORD 'plain'; GRANT USAGE ON SCHEMA outboxd TO {role};"
        f"GRANT ALL ON ALL TABLES IN SCHEMA public, outboxd TO {role};"
        f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public, outboxd TO {role}"
    )
    url = urlsplit(database)
    yield urlunsplit(url._replace(netloc=f"{role}:plain@{url.netloc.rpartition('@')[2]}"))
    await connection.execute(f"DROP OWNED BY {role}; DROP ROLE {role}")


async def test_a_role_that_may_not_see_other_sessions_has_no_horizon_and_all_the_rest(
    plain_role: str, connection: asyncpg.Connection
) -> None:
    await write(connection, due_in_s=LATER_S)
    async with sampled(plain_role) as (pipeline, made):
        assert (await sample(made)).messages == 1
        assert made.horizon is None
        names = {name for name, _ in exposed(pipeline, made)}
        assert not HORIZON & names

        await connection.execute(f"GRANT pg_read_all_stats TO {urlsplit(plain_role).username}")
        await made.measure()
        assert {name for name, _ in exposed(pipeline, made)} >= HORIZON


async def test_a_privilege_that_is_missing_is_said_with_its_grant(
    plain_role: str, connection: asyncpg.Connection
) -> None:
    role = urlsplit(plain_role).username
    async with sampled(plain_role) as (_, made):
        await connection.execute(f"REVOKE SELECT ON outbox FROM {role}")
        with structlog.testing.capture_logs() as logs:
            await made.measure()

    [said] = [line for line in logs if line["event"] == "metrics.not_sampled"]
    assert "permission denied" in said["error"]
    assert said["hint"].endswith(f"GRANT SELECT ON public.outbox TO {role};")


async def test_it_measures_by_itself_and_leaves_no_session_behind(
    database: str, connection: asyncpg.Connection
) -> None:
    await write(connection, due_in_s=LATER_S)
    async with sampled(database) as (_, made):
        running = asyncio.create_task(made.run())
        await eventually(lambda: "region" in made.samples)
        assert made.session.life
        running.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await running
        assert not made.session.life


async def test_a_fault_of_its_own_is_logged_and_does_not_end_it(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sampler, "INTERVAL_S_MAX", 0.01)
    await write(connection, due_in_s=LATER_S)
    async with sampled(database) as (_, made):
        measure = made.measure
        faults = iter([ZeroDivisionError("division by zero"), KeyError("region")])

        async def faulty() -> None:
            for fault in faults:
                raise fault
            await measure()

        monkeypatch.setattr(made, "measure", faulty)
        with structlog.testing.capture_logs() as logs:
            running = asyncio.create_task(made.run())
            await eventually(lambda: running.done() or "region" in made.samples)
            running.cancel()
            await asyncio.gather(running, return_exceptions=True)

        assert running.cancelled()
    assert [line["log_level"] for line in logs if line["event"] == "metrics.crashed"] == ["error", "error"]


async def test_clocks_are_compared(database: str, monkeypatch: pytest.MonkeyPatch) -> None:
    async with sampled(database) as (pipeline, made):
        real = time.time
        monkeypatch.setattr("outboxd.sampler.time.time", lambda: real() - 100)
        await made.measure()

        assert pipeline.branches[0].meter.clock_ahead_s == pytest.approx(100, abs=5)


async def test_the_opening_of_a_session_does_not_count_as_a_difference_of_clocks(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened = session.connect
    openings: list[str] = []

    async def slowly(*args: Any, **options: Any) -> asyncpg.Connection:
        connection = await opened(*args, **options)
        openings.append(options["name"])
        return connection

    async with sampled(database) as (pipeline, made):
        real = time.time
        monkeypatch.setattr("outboxd.session.connect", slowly)
        monkeypatch.setattr("outboxd.sampler.time.time", lambda: real() - (0 if "sample" in openings else 100))
        await made.measure()

        assert "sample" in openings
        assert pipeline.branches[0].meter.clock_ahead_s == pytest.approx(0, abs=5)


async def test_a_session_that_is_lost_while_clocks_are_compared_says_nothing(
    database: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with sampled(database) as (pipeline, made):
        await made.measure()
        before = pipeline.branches[0].meter.clock_ahead_s
        real = time.time

        def losing() -> float:
            made.session.terminate()
            return real() - 100

        monkeypatch.setattr("outboxd.sampler.time.time", losing)
        await made.measure()

        assert pipeline.branches[0].meter.clock_ahead_s == before
