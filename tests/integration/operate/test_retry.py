"""`outboxd retry`: what waits for its next try is due now; the statements behind it, on shards of every kind."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import acts, errors, sql
from outboxd.inspection import inspect_table
from outboxd.outbox import renderer_of
from tests.drains import (
    CONTROL,
    REGION,
    TEXT,
    UUID,
    Recorder,
    configure,
    connected,
    drain_once,
    failing,
    failures,
    remaining,
    write,
    write_many,
)
from tests.integration.drain.test_statements import outbox_of, problems
from tests.integration.operate.roles import reading_role
from tests.processes import run

if TYPE_CHECKING:
    from collections.abc import Sequence

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.model import ShardKey
    from tests.integration.operate.switched import Here
    from tests.trouble import Trouble

SHARD = ("--scope", "0", "--shard", "1")
KEY = uuid.UUID("0e5b2a0c-6a0b-4d43-9e9a-0a6f8d1f5c11")
KINDS: dict[str, tuple[OutboxConfig, dict[str, Any], ShardKey]] = {
    "region": (REGION, {"shard": 7}, (0, 7)),
    "control": (CONTROL, {"shard": 7, "region": "eu", "table": "control_outbox"}, ("eu", 0, 7)),
    "uuid": (UUID, {"shard": KEY, "obj": KEY, "table": "uuid_outbox"}, (0, KEY)),
    "text": (TEXT, {"shard": "it's", "obj": "é", "table": "text_outbox"}, (0, "it's")),
}


async def retry(
    connection: asyncpg.Connection,
    shard: ShardKey,
    config: Config | None = None,
    categories: list[int] | None = None,
) -> int:
    config = config or configure()
    outbox = config.outboxes[0]
    table = await inspect_table(connection, outbox)
    return await acts.retry_shard(connection, config, acts.Stuck(outbox, table, shard), categories)


async def put_off(connection: asyncpg.Connection, table: str = "outbox") -> None:
    """Every message waits for another hour."""
    await connection.execute(f"UPDATE {table} SET scheduled_from = now(), scheduled_for = now() + interval '1 hour'")


async def due(connection: asyncpg.Connection, table: str = "outbox") -> list[int]:
    rows = await connection.fetch(f"SELECT id FROM {table} WHERE scheduled_for <= now() ORDER BY id")
    return [row[0] for row in rows]


# --- the statements ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [REGION, CONTROL, UUID, TEXT], ids=lambda config: config.name)
async def test_the_statements_take_what_their_headers_say(connection: asyncpg.Connection, config: OutboxConfig) -> None:
    table = (await outbox_of(connection, config)).table
    statements = {name: renderer_of(table, "outboxd").render(text) for name, text in sql.load("acts.sql").items()}
    short = {"bigint": "int8", "integer": "int4", "character varying": "varchar"}

    assert await problems(connection, statements, [short.get(t, t) for t in table.shard_columns.values()]) == []


@pytest.mark.parametrize(("outbox", "where", "shard"), KINDS.values(), ids=KINDS)
async def test_a_failing_shard_is_due_and_is_tried_again(
    database: str, connection: asyncpg.Connection, outbox: OutboxConfig, where: dict[str, Any], shard: ShardKey
) -> None:
    config = configure(outbox)
    ids = [await write(connection, **where), await write(connection, **where, category="TEAM")]
    other = where | {"region": "us"} if outbox is CONTROL else where | {"scope": 1, "category": "PROFILE"}
    await write(connection, **other)
    await drain_once(database, Recorder(failing()), config)
    await put_off(connection, outbox.table)

    moved = await retry(connection, shard, config)

    assert moved == 2
    assert await due(connection, outbox.table) == ids
    seen = Recorder()
    await drain_once(database, seen, config)
    assert [message.attempt for message in seen.messages] == [2, 1]


async def test_of_a_deep_shard_the_first_thousand_are_moved(database: str, connection: asyncpg.Connection) -> None:
    await write_many(connection, 5_000)
    await drain_once(database, Recorder(failing()))
    await put_off(connection)

    moved = await retry(connection, (0, 1))

    assert moved == configure().drain.backoff_rows_max
    assert await due(connection) == (await remaining(connection))[:1_000]


async def test_what_failed_behind_the_first_thousand_is_moved_too(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 4_999, category="TEAM")
    last = await write(connection, category="SKIPPING", obj=9_999)
    config = configure(backoff_rows_max=10)
    await connection.execute(
        "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, category, object_identifier, message_id)"
        " VALUES ('region', 0, '1', 4, '9999', $1)",
        last,
    )
    await put_off(connection)

    moved = await retry(connection, (0, 1), config)

    assert moved == 11
    assert await due(connection) == [*(await remaining(connection))[:10], last]


async def test_each_object_that_failed_by_itself_is_tried_again(database: str, connection: asyncpg.Connection) -> None:
    for obj in range(1, 5):
        await write(connection, category="SKIPPING", obj=obj)
    await drain_once(database, Recorder(failing(2, 4)))
    await put_off(connection)

    assert await retry(connection, (0, 1)) == 2

    seen = Recorder()
    await drain_once(database, seen)
    assert seen.objects == [2, 4]
    assert await failures(connection) == []


async def test_of_many_objects_that_failed_so_many_are_moved_and_the_next_retry_goes_on(
    database: str, connection: asyncpg.Connection
) -> None:
    for obj in range(1, 6):
        await write(connection, category="SKIPPING", obj=obj)
    await drain_once(database, Recorder(failing()))
    in_front = [await write(connection, category="TEAM", obj=obj) for obj in (8, 9)]
    await connection.execute("UPDATE outbox SET id = -id WHERE id = ANY ($1::int8[])", in_front)
    await put_off(connection)

    assert [await retry(connection, (0, 1), configure(backoff_rows_max=2)) for _ in range(4)] == [4, 2, 1, 0]


async def test_only_a_category_is_moved_where_one_is_named(database: str, connection: asyncpg.Connection) -> None:
    team = await write(connection, category="TEAM")
    member = await write(connection)
    await put_off(connection)

    assert await retry(connection, (0, 1), categories=[2]) == 1
    assert await due(connection) == [team]
    assert await retry(connection, (0, 1)) == 1
    assert await due(connection) == [team, member]


@pytest.mark.parametrize(
    ("scheduled_from", "scheduled_for", "delay_s"),
    [
        ("now()", "now() + interval '40 s'", 80),
        ("now() - interval '10 s'", "now() + interval '30 s'", 80),
        ("now()", "now() + interval '40 min'", 3_600),
        ("now()", "now() + interval '3 days'", 3_600),
        ("now()", "'infinity'", 3_600),
        ("'4713-01-01 BC'", "'294276-12-31'", 3_600),
        ("'-infinity'", "'infinity'", 3_600),
        ("'infinity'", "'infinity'", 2),
        ("now() + interval '1 day'", "now() + interval '1 hour'", 2),
    ],
)
async def test_a_shard_that_fails_again_at_once_goes_on_backing_off_from_where_it_was(
    database: str, connection: asyncpg.Connection, scheduled_from: str, scheduled_for: str, delay_s: float
) -> None:
    await write(connection)
    await drain_once(database, Recorder(failing()))
    await connection.execute(f"UPDATE outbox SET scheduled_from = {scheduled_from}, scheduled_for = {scheduled_for}")

    assert await retry(connection, (0, 1)) == 1
    assert await retry(connection, (0, 1)) == 0
    await drain_once(database, Recorder(failing()))

    delay = "SELECT extract(epoch FROM scheduled_for - scheduled_from)::float8 FROM outbox"
    assert await connection.fetchval(delay) == delay_s


# --- many shards -------------------------------------------------------------------------------------------


async def fail_shards(connection: asyncpg.Connection, count: int) -> None:
    """Let the shards from 1 on be failing, that of the number 1 since the latest; there may be no messages in them."""
    await connection.execute(
        "INSERT INTO outboxd.failure"
        " (outbox, shard_scope, shard_identifier, category, object_identifier, message_id, first_failed_at)"
        " SELECT 'region', 0, n::text, 1, 'x', 0, now() - n * interval '1 s' FROM generate_series(1, $1::int) AS n",
        count,
    )


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """An act waits a tenth of a second for a lock."""
    monkeypatch.setattr(acts, "LOCK_TIMEOUT_S", 0.1)


async def test_every_page_of_failing_shards_is_retried_and_each_shard_is_told_once(
    connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(acts, "PAGE_SHARDS", 7)
    config = configure(REGION, CONTROL, TEXT)
    for shard in range(1, 21):
        await write(connection, shard=shard)
        await write(connection, shard=f"{shard}'", obj="x", table="text_outbox")
        for region in ("eu", "us"):
            await write(connection, shard=shard, region=region, table="control_outbox")
    for outbox, region in (("outbox", "''"), ("text_outbox", "''"), ("control_outbox", "region_name")):
        await put_off(connection, outbox)
        await connection.execute(
            "INSERT INTO outboxd.failure"
            " (outbox, region_name, shard_scope, shard_identifier, category, object_identifier, message_id)"
            f" SELECT $1, {region}, 0, shard_identifier::text, 1, object, id"
            f" FROM {outbox}, unnest(ARRAY['1', '2']) AS object",
            {"outbox": "region", "text_outbox": "text", "control_outbox": "control"}[outbox],
        )
    found = acts.Retry(connection, config, config.outboxes, acts.Wanted())
    told: list[str] = []

    assert await found.count() == 80

    async def tell(page: Sequence[acts.Stuck]) -> None:
        told.extend(one.name(config) for one in page)

    await found.run(tell)

    assert (found.shards, found.messages, found.problems) == (80, 80, [])
    assert len(set(told)) == len(told) == 80
    assert [len(await due(connection, each)) for each in ("outbox", "text_outbox", "control_outbox")] == [20, 20, 40]


@pytest.mark.usefixtures("impatient")
async def test_a_message_that_somebody_has_locked_keeps_its_shard_only(
    database: str, connection: asyncpg.Connection
) -> None:
    ids = [await write(connection, shard=shard) for shard in range(1, 5)]
    await drain_once(database, Recorder(failing()))
    await put_off(connection)
    found = acts.Retry(connection, configure(), [REGION], acts.Wanted())
    async with connected(database) as other, other.transaction():
        await other.execute("SELECT FROM outbox WHERE shard_identifier = 2 FOR UPDATE")
        await found.run()

    assert (found.shards, found.messages) == (3, 3)
    [problem] = found.problems
    assert "shard ORGANIZATION_SCOPE 2" in str(problem)
    assert "lock timeout" in str(problem)
    assert await due(connection) == [ids[0], *ids[2:]]


@pytest.mark.usefixtures("impatient")
async def test_where_everything_is_locked_it_gives_up_and_says_so(
    database: str, connection: asyncpg.Connection
) -> None:
    for shard in range(1, 10):
        await write(connection, shard=shard)
    await drain_once(database, Recorder(failing()))
    await put_off(connection)
    found = acts.Retry(connection, configure(), [REGION], acts.Wanted())
    async with connected(database) as other, other.transaction():
        await other.execute("SELECT FROM outbox FOR UPDATE")
        await found.run()

    assert (found.shards, len(found.problems)) == (0, acts.REFUSED_MAX + 1)
    assert "5 shards were refused, the rest was not tried" in str(found.problems[-1])


@pytest.mark.parametrize(("deadlocks", "moved"), [(2, 1), (3, 0)])
async def test_a_deadlock_with_a_drain_is_tried_again(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, deadlocks: int, moved: int
) -> None:
    await write(connection)
    await drain_once(database, Recorder(failing()))
    retry_page, met = acts._retry_page, iter(range(deadlocks))

    async def deadlocked(*arguments: Any) -> acts.Moved:
        if next(met, None) is not None:
            raise errors.StatementFailed("deadlock detected", sqlstate="40P01")
        return await retry_page(*arguments)

    monkeypatch.setattr(acts, "_retry_page", deadlocked)
    made = acts.Retry(connection, configure(), [REGION], acts.Wanted())
    await made.run()

    assert made.messages == moved
    assert bool(made.problems) == (not moved)


@pytest.mark.parametrize("arguments", [("retry", "--all-stuck", "--yes"), ("resume", "--now", *SHARD)])
async def test_no_shard_is_left_out_because_there_are_many(
    here: Here, connection: asyncpg.Connection, arguments: tuple[str, ...]
) -> None:
    """Also the one that has failed for the shortest time."""
    await write(connection, shard=1)
    await put_off(connection)
    await here.run("pause", *SHARD)
    await fail_shards(connection, 100_001)

    done = await here.run(*arguments)

    assert "made due: 1 message in " in done.stdout
    assert len(await due(connection)) == 1


# --- the command -------------------------------------------------------------------------------------------


async def stuck(database: str, connection: asyncpg.Connection) -> None:
    """Shards 1 to 3 have failed in MEMBER, shard 4 in TEAM, and shard 1 of region eu in the control outbox."""
    await write_many(connection, 6, shards=3)
    await write(connection, shard=4, category="TEAM")
    await write(connection, region="eu", table="control_outbox")
    await drain_once(database, Recorder(failing()), configure(REGION, CONTROL))
    await put_off(connection)
    await put_off(connection, "control_outbox")


@pytest.mark.parametrize("scope", ["ORGANIZATION_SCOPE", "0"])
async def test_one_shard(here: Here, database: str, connection: asyncpg.Connection, scope: str) -> None:
    await stuck(database, connection)

    done = await here.run("retry", scope, "2", "--outbox", "region")

    assert done.stdout == "made due: 2 messages of shard ORGANIZATION_SCOPE 2 of outbox region\n"
    assert len(await due(connection)) == 2
    again = await here.run("retry", scope, "2", "--outbox", "region")
    assert again.stdout == "nothing was moved: among the shard's first messages none waits for a later time\n"
    other = await here.run("retry", scope, "1", "--outbox", "region", "--category", "TEAM")
    assert "among the shard's first messages none of that category waits" in other.stdout


async def test_one_shard_of_a_region(here: Here, database: str, connection: asyncpg.Connection) -> None:
    await stuck(database, connection)

    done = await here.run("retry", "0", "1", "--region", "eu")

    assert done.stdout == "made due: 1 message of shard ORGANIZATION_SCOPE 1 in eu of outbox control\n"
    assert await due(connection) == []


@pytest.mark.parametrize(
    ("arguments", "said", "moved"),
    [
        ((), "made due: 8 messages in 5 shards", 7),
        (("--outbox", "region"), "made due: 7 messages in 4 shards", 7),
        (("--outbox", "control"), "made due: 1 message in 1 shard", 0),
        (("--category", "TEAM"), "made due: 1 message in 1 shard", 1),
        (("--category", "3"), "no shard is in backoff", 0),
    ],
)
async def test_all_stuck_shards(
    here: Here, database: str, connection: asyncpg.Connection, arguments: tuple[str, ...], said: str, moved: int
) -> None:
    await stuck(database, connection)

    done = await here.run("retry", "--all-stuck", "--yes", *arguments)

    assert done.stdout == f"{said}\n"
    assert len(await due(connection)) == moved


async def test_all_stuck_shards_are_moved_only_after_a_yes(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    await stuck(database, connection)

    error = await here.refused("retry", "--all-stuck")

    assert "Make 5 shards in backoff due now? [y/N]" in error
    assert "nobody is there to answer" in error
    assert await due(connection) == []


async def test_what_is_due_already_is_not_made_due(trouble: Trouble) -> None:
    await trouble.connection.execute("UPDATE control_outbox SET scheduled_for = now()")

    done = await run("retry", "--all-stuck", "--outbox", "control", "--yes", config=trouble.file)

    assert (done.returncode, done.stdout) == (0, "nothing was waiting in 1 shard\n")


async def test_shards_of_which_nothing_was_moved_are_not_counted(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    await stuck(database, connection)
    await connection.execute("UPDATE outbox SET scheduled_for = now() WHERE shard_identifier < 3")

    done = await here.run("retry", "--all-stuck", "--yes")

    assert done.stdout == "made due: 4 messages in 3 shards\n"


async def test_who_may_not_is_not_told_that_there_was_nothing_to_do(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    await stuck(database, connection)
    async with reading_role(connection, database, "outbox", "control_outbox") as its_dsn:
        here.configure(dsn=its_dsn)
        error = await here.refused("retry", "--all-stuck", "--yes", code=78)

    assert "permission denied for table outbox" in error


async def test_what_is_still_off_is_named(here: Here, database: str, connection: asyncpg.Connection) -> None:
    await stuck(database, connection)
    await here.run("pause", "--scope", "0", "--shard", "2", "--author", "alice", "--reason", "their endpoint")
    await here.run("pause", "--scope", "0", "--shard", "2", "--region", "eu")
    await here.run("pause", "--outbox", "control", "--author", "bob")
    await here.run("pause", "--category", "PROFILE")

    done = await here.run("retry", "--all-stuck", "--yes")

    assert done.stdout.splitlines() == [
        "made due: 8 messages in 5 shards",
        "still off: shard ORGANIZATION_SCOPE 2, pause 1 by alice: their endpoint"
        " (shard ORGANIZATION_SCOPE 2 of outbox region)",
        "still off: outbox control, pause 3 by bob (shard ORGANIZATION_SCOPE 1 in eu of outbox control)",
    ]
    await here.run("pause", "--category", "TEAM", "--author", "carol")
    one = await here.run("retry", "0", "4", "--outbox", "region")
    assert "still off: category TEAM, pause 5 by carol (shard ORGANIZATION_SCOPE 4 of outbox region)" in one.stdout
    members = await here.run("retry", "0", "4", "--category", "MEMBER", "--outbox", "region")
    assert "still off" not in members.stdout
    other = await here.run("retry", "0", "1", "--outbox", "region")
    assert "still off" not in other.stdout  # it has no message of that category


async def test_a_shard_without_messages_is_said_with_exit_code_1(here: Here) -> None:
    error = await here.refused("retry", "0", "9", "--outbox", "region", code=1)

    assert error == "shard ORGANIZATION_SCOPE 9 of outbox region has no messages\n"


async def test_a_locked_message_is_not_waited_for_for_ever(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    await stuck(database, connection)
    async with connected(database) as other, other.transaction():
        await other.execute("SELECT FROM outbox WHERE shard_identifier = 2 FOR UPDATE")
        error = await here.refused("retry", "0", "2", "--outbox", "region", code=1)

    assert "retrying shard ORGANIZATION_SCOPE 2 of outbox region: canceling statement due to lock timeout" in error
    assert "hint: Another session has locked it" in error
    assert await due(connection) == []


async def test_an_outbox_that_is_broken_does_not_keep_the_others(
    here: Here, database: str, connection: asyncpg.Connection
) -> None:
    await stuck(database, connection)
    await connection.execute("DROP TABLE uuid_outbox")

    done = await here.run("retry", "--all-stuck", "--yes", code=78)

    assert done.stdout == "made due: 8 messages in 5 shards\n"
    assert "there is no table uuid_outbox" in done.stderr


REFUSED: dict[str, tuple[tuple[str, ...], str]] = {
    "nothing": ((), "which shard?"),
    "half a shard": (("0",), "which shard?"),
    "unknown scope": (("ORGANIZATION_SCOP", "1", "--outbox", "region"), "did you mean ORGANIZATION_SCOPE?"),
    "wrong type": (("0", "x", "--outbox", "region"), "the shard identifier must be an integer (bigint), got 'x'"),
    "several outboxes": (("0", "1"), "2 outboxes fit: name one with --outbox"),
    "unknown outbox": (("--all-stuck", "--outbox", "regoin"), "there is no outbox regoin, did you mean region?"),
    "unknown category": (("0", "1", "--outbox", "region", "--category", "TAEM"), "did you mean TEAM?"),
    "all of one": (("--all-stuck", "0", "1"), "--all-stuck goes with --category and --outbox only"),
    "all of a region": (("--all-stuck", "--region", "eu"), "--all-stuck goes with --category and --outbox only"),
}


@pytest.mark.parametrize(("arguments", "error"), REFUSED.values(), ids=REFUSED)
async def test_what_cannot_be_is_refused(
    here: Here, database: str, connection: asyncpg.Connection, arguments: tuple[str, ...], error: str
) -> None:
    await stuck(database, connection)

    assert error in await here.refused("retry", *arguments)
    assert await due(connection) == []
