"""
A database with all kinds of trouble in it, made by the real pipeline wherever that can make it.

    async with troubled(dsn, folder) as trouble:
        done = await run("shards", config=trouble.file)

| shard                 | constant       | trouble                                            |
|-----------------------|----------------|----------------------------------------------------|
| organization 1        | `HEALTHY`      | none: 3 messages, due                              |
| organization 2        | `DEEP`         | 3 000 messages, due                                |
| organization 3        | `FAILING`      | object 31 has failed 3 times, 11 wait behind it    |
| organization 4        | `SKIPPING`     | object 41 has failed 3 times; 2 others are due     |
| organization 5        | `PAUSED`       | a pause for two hours; 4 messages, due             |
| organization 6        | `SWITCHED_OFF` | an option; 5 messages, due                         |
| organization 7        | `CATEGORY_OFF` | 6 messages of AUDIT, which is paused               |
| organization 8        | `FUTURE`       | 2 messages, due in a day                           |
| organization 9        | `UNKNOWN`      | category 999, failed 3 times                       |
| organization 10       | `UNHANDLED`    | INVOICE, which has no receiver, failed 3 times     |
| organization 11       | `BURIED`       | empty; 2 dead letters: attempts used up, discarded |
| organization 12       | `INVISIBLE`    | 1 message, in a transaction that is open           |
| user 21 in eu         | `EU_FAILING`   | object 231 has failed 3 times, 1 waits behind it   |
| user 21 in us         | `US_HEALTHY`   | none: 2 messages, due                              |
| user 22 in us and eu  | `US_PAUSED`    | a pause for us only; 1 message in each, due        |
| user 23 in eu         | `EU_BURIED`    | empty; 1 dead letter                               |

Organizations are in outbox region, users in outbox control. Two dead daemons are in `outboxd.worker`: one whose death
was noticed, one whose lock is free.
"""

from __future__ import annotations

import asyncio
import contextlib
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outboxd import load, main
from outboxd.migrate import migrate
from outboxd.pipeline import Pipeline
from tests.drains import connected, make_due, write
from tests.eventually import PATIENCE_S

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg

    from outboxd.config import Config
    from outboxd.load import Loaded

ORGANIZATION, USER = 0, 1
HEALTHY, DEEP, FAILING, SKIPPING, PAUSED, SWITCHED_OFF, CATEGORY_OFF, FUTURE = range(1, 9)
UNKNOWN, UNHANDLED, BURIED, INVISIBLE = range(9, 13)
EU_FAILING = US_HEALTHY = 21
US_PAUSED, EU_BURIED = 22, 23
DEEP_ROWS = 3_000
ATTEMPTS = 3
UNKNOWN_CATEGORY, INVOICE = 999, 7
DEAD_HOST = "worker-7.example"

TOML = """
dsn = "{dsn}"

[drain]
poll_interval_s = 0.05

[receivers]
modules = ["tests.trouble_receivers"]

[scopes.ORGANIZATION_SCOPE]
value = 0
tag = "organization_id"

[scopes.USER_SCOPE]
value = 1
tag = "user_id"

[categories]
MEMBER = {{ value = 1, scope = "ORGANIZATION_SCOPE" }}
TEAM = {{ value = 2, scope = "ORGANIZATION_SCOPE" }}
AUDIT = {{ value = 3, scope = "ORGANIZATION_SCOPE", coalesce = false }}
SKIPPING = {{ value = 4, scope = "ORGANIZATION_SCOPE", on_error = "skip" }}
LIMITED = {{ value = 5, scope = "ORGANIZATION_SCOPE", max_attempts = 3 }}
PROFILE = {{ value = 6, scope = "USER_SCOPE" }}
INVOICE = {{ value = 7, scope = "ORGANIZATION_SCOPE" }}

[[outbox]]
name = "region"
table = "outbox"

[[outbox]]
name = "control"
table = "control_outbox"
silo = "control"
sharding_columns = ["region_name", "shard_scope", "shard_identifier"]
"""


@dataclass(frozen=True)
class Trouble:
    """
    The database, and what a process needs to look at it.

    Attributes:
        file: The configuration; its receivers are `tests.trouble_receivers`.
        blocker: Backend pid of the transaction that holds the message of shard `INVISIBLE`.
    """

    dsn: str
    file: Path
    loaded: Loaded
    connection: asyncpg.Connection
    blocker: int

    @property
    def config(self) -> Config:
        return self.loaded.config


@contextlib.asynccontextmanager
async def troubled(dsn: str, folder: Path, *, is_open: bool = True) -> AsyncIterator[Trouble]:
    """
    Fill a database, migrated or empty.

    Every backoff is some 40 minutes long, so that no test can outlive it.

    Args:
        dsn: Of the database.
        folder: For the configuration.
        is_open: Keep the open transaction open while the block lasts; else there is none, and shard `INVISIBLE` is
            empty. `outboxd explain` mentions one, whatever it is asked about, when it is ten seconds old.
    """
    file = folder / "outboxd.toml"
    file.write_text(TOML.format(dsn=dsn))
    loaded = load.load(file)
    async with connected(dsn) as connection, connected(dsn) as other:
        await migrate(connection, loaded.config)
        await _write_what_fails(connection)
        await _drain_until_it_has_failed(loaded, connection)
        await _write_what_waits(connection)
        await _switch_off(connection)
        await _leave_dead_daemons(connection)
        transaction = other.transaction()
        await transaction.start()
        if is_open:
            await write(other, shard=INVISIBLE)
        try:
            yield Trouble(dsn, file, loaded, connection, other.get_server_pid())
        finally:
            await transaction.rollback()


async def _write_what_fails(connection: asyncpg.Connection) -> None:
    for obj in range(31, 41):
        await write(connection, shard=FAILING, obj=obj, payload={"slug": f"member-{obj}"})
    for obj in (301, 302):
        await write(connection, shard=FAILING, obj=obj, category="TEAM")
    await write(connection, shard=SKIPPING, obj=41, category="SKIPPING")
    await write(connection, shard=UNKNOWN, obj=91, category=UNKNOWN_CATEGORY)
    await write(connection, shard=UNHANDLED, obj=101, category=INVOICE)
    await write(connection, shard=BURIED, obj=111, category="LIMITED", payload={"slug": "x"})
    await write(connection, shard=BURIED, obj=112, category="TEAM")
    await _write_profile(connection, "eu", EU_FAILING, 231)
    await _write_profile(connection, "eu", EU_FAILING, 232)
    await _write_profile(connection, "eu", EU_BURIED, 112)
    for table in ("outbox", "control_outbox"):  # as if they had waited for five minutes: each failure doubles that
        await connection.execute(
            f"UPDATE {table} SET scheduled_from = now() - interval '5 minutes', scheduled_for = now()"
        )


async def _write_profile(connection: asyncpg.Connection, region: str, shard: int, obj: int) -> None:
    await write(connection, shard=shard, obj=obj, category="PROFILE", scope=USER, table="control_outbox", region=region)


async def _drain_until_it_has_failed(loaded: Loaded, connection: asyncpg.Connection) -> None:
    for attempt in range(ATTEMPTS):
        if attempt:
            await make_due(connection)
            await make_due(connection, "control_outbox")
        pipeline = Pipeline(loaded.config, main.build_registry(loaded), lambda: loaded.config.dsn, bounded=True)
        await pipeline.open()
        async with asyncio.timeout(PATIENCE_S):
            await pipeline.run()


async def _write_what_waits(connection: asyncpg.Connection) -> None:
    for obj in (11, 12, 13):
        await write(connection, shard=HEALTHY, obj=obj, payload={"slug": f"member-{obj}"})
    await connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, payload)"
        " SELECT 0, $1, 1 + n % 2, 10000 + n, jsonb_build_object('n', n) FROM generate_series(1, $2::int) AS n",
        DEEP,
        DEEP_ROWS,
    )
    for obj in (42, 43):
        await write(connection, shard=SKIPPING, obj=obj, category="SKIPPING")
    for obj in range(51, 55):
        await write(connection, shard=PAUSED, obj=obj)
    for obj in range(61, 66):
        await write(connection, shard=SWITCHED_OFF, obj=obj, category="TEAM")
    for obj in range(71, 77):
        await write(connection, shard=CATEGORY_OFF, obj=obj, category="AUDIT")
    for obj in (81, 82):
        await write(connection, shard=FUTURE, obj=obj, due_in_s=86_400)
    await _write_profile(connection, "us", US_HEALTHY, 211)
    await _write_profile(connection, "us", US_HEALTHY, 212)
    await _write_profile(connection, "us", US_PAUSED, 221)
    await _write_profile(connection, "eu", US_PAUSED, 221)


async def _switch_off(connection: asyncpg.Connection) -> None:
    await connection.execute(
        "INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier, reason, author, expires_at)"
        " VALUES ('shard', $1, $2, 'their endpoint is down', 'ada', now() + interval '2 hours')",
        ORGANIZATION,
        str(PAUSED),
    )
    await connection.execute(
        "INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier, region_name, reason, author)"
        " VALUES ('shard', $1, $2, 'us', 'moving to another cell', 'grace')",
        USER,
        str(US_PAUSED),
    )
    await connection.execute(
        "INSERT INTO outboxd.pause (kind, category, reason, author) VALUES ('category', 3, 'bad deploy', 'ada')"
    )
    await connection.execute(
        "INSERT INTO outboxd.pause (kind, outbox, reason, author, expires_at)"
        " VALUES ('outbox', 'region', 'over long ago', 'ada', now() - interval '1 hour')"
    )
    await connection.execute(
        "INSERT INTO outboxd.option (key, value, reason, updated_by)"
        " VALUES ('outbox.disabled_shards.ORGANIZATION_SCOPE', $1, 'they write too much', 'grace')",
        f"[{SWITCHED_OFF}]",
    )


async def _leave_dead_daemons(connection: asyncpg.Connection) -> None:
    """Leave one whose death was noticed an hour ago, and one that nobody has missed yet."""
    for died in ("now() - interval '1 hour'", "NULL"):
        await connection.execute(
            "INSERT INTO outboxd.worker (pid, host, version, silo_mode, outboxes, started_at, died_at)"
            f" VALUES (4242, $1, '0.0.1', 'monolith', '[]', now() - interval '1 day', {died})",
            DEAD_HOST,
        )
