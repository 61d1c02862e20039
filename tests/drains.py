"""
Draining in tests: a configuration, messages to drain, receivers to drain them, and the pipeline around them.

    await write(connection, shard=1, obj=7)
    seen = Recorder()
    await drain_once(database, seen)
    assert seen.objects == [7]
"""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import json
from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec

from outboxd import registry
from outboxd.claims import SHARD_CLASS, Claims
from outboxd.config import CategoryConfig, Config, DrainConfig, OutboxConfig, ScopeConfig
from outboxd.inspection import inspect_table
from outboxd.live import Live
from outboxd.outbox import Outbox
from outboxd.pipeline import Pipeline
from outboxd.sql import quote_qualified
from outboxd.turn import ID
from tests.eventually import PATIENCE_S, eventually

if TYPE_CHECKING:
    from outboxd.model import Candidate, Message

Receiver = Callable[["Message"], Any]
Receivers = Receiver | Mapping[str, Receiver | Iterable[Receiver]]
"""One receiver of every category, or those of each category by name."""

REGION = OutboxConfig(name="region", table="outbox")
CONTROL = OutboxConfig(
    name="control",
    table="control_outbox",
    silo="control",
    sharding_columns=["region_name", "shard_scope", "shard_identifier"],
)
UUID = OutboxConfig(name="uuid", table="uuid_outbox", key_type="uuid")
TEXT = OutboxConfig(name="text", table="text_outbox", key_type="text")

SCOPES = {"ORGANIZATION_SCOPE": ScopeConfig(value=0), "USER_SCOPE": ScopeConfig(value=1)}
CATEGORIES = {
    "MEMBER": CategoryConfig(value=1, scope="ORGANIZATION_SCOPE"),
    "TEAM": CategoryConfig(value=2, scope="ORGANIZATION_SCOPE"),
    "AUDIT": CategoryConfig(value=3, scope="ORGANIZATION_SCOPE", coalesce=False),
    "SKIPPING": CategoryConfig(value=4, scope="ORGANIZATION_SCOPE", on_error="skip"),
    "LIMITED": CategoryConfig(value=5, scope="ORGANIZATION_SCOPE", max_attempts=3),
    "PROFILE": CategoryConfig(value=6, scope="USER_SCOPE"),
}
UNKNOWN_CATEGORY = 999


def configure(*outboxes: OutboxConfig, categories: Mapping[str, CategoryConfig] = CATEGORIES, **drain: Any) -> Config:
    """
    Build a configuration.

    Args:
        outboxes: The region outbox alone when none is named.
        categories: Instead of `CATEGORIES`.
        drain: Keys of `[drain]`; what a test would only wait for is short unless they say otherwise.
    """
    settings = {"poll_interval_s": 0.05, "receiver_timeout_s": 20.0, **drain}
    return Config(
        outbox=list(outboxes or (REGION,)),
        scopes=SCOPES,
        categories=dict(categories),
        drain=msgspec.convert(settings, DrainConfig),
    )


def with_drain(config: Config, **drain: Any) -> Config:
    """Copy a configuration with other settings in `[drain]`."""
    return msgspec.structs.replace(config, drain=msgspec.structs.replace(config.drain, **drain))


STANDARD = configure(REGION, CONTROL, UUID, TEXT)
"""What the database that every test gets is migrated for."""


DEAD = (
    "INSERT INTO outboxd.worker (pid, host, version, silo_mode, outboxes)"
    " VALUES (1, 'gone', '0', 'monolith',"
    """ '[{"name": "region", "table": "outbox", "sharding_columns": ["shard_scope", "shard_identifier"]}]')"""
)
"""The row of a daemon whose lock is free: whoever finds it counts deliveries ahead (prepared mode)."""


class Recorder:
    """
    A receiver that remembers what it was given, and then does what the test wants.

    Args:
        then: Called with each message, once it is recorded; what it raises, the receiver raises.
    """

    def __init__(self, then: Callable[[Message], object] | None = None) -> None:
        self.messages: list[Message] = []
        self._then = then

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        if self._then is not None:
            result = self._then(message)
            if inspect.isawaitable(result):
                await result

    @property
    def ids(self) -> list[int]:
        return [message.id for message in self.messages]

    @property
    def objects(self) -> list[Any]:
        return [message.object_identifier for message in self.messages]

    @property
    def shards(self) -> list[Any]:
        return [message.shard_identifier for message in self.messages]


def failing(*objects: Any, error: BaseException | None = None) -> Callable[[Message], None]:
    """Make a `then` for `Recorder` that fails for these objects, or for every one when none is named."""

    def fail(message: Message) -> None:
        if not objects or message.object_identifier in objects:
            raise error or ValueError(f"object {message.object_identifier} is broken")

    return fail


class Gate:
    """A receiver that holds each delivery until it is opened."""

    def __init__(self) -> None:
        self.messages: list[Message] = []
        self.entered = asyncio.Event()
        self.opened = asyncio.Event()

    async def __call__(self, message: Message) -> None:
        self.messages.append(message)
        self.entered.set()
        await self.opened.wait()

    async def closed_behind(self) -> Message:
        """Wait for a delivery to be inside, and return its message."""
        async with asyncio.timeout(PATIENCE_S):
            await self.entered.wait()
        return self.messages[-1]


def build(config: Config, receivers: Receivers) -> registry.Registry:
    """Join a configuration with receivers, in the order given."""
    by_category = receivers if isinstance(receivers, Mapping) else dict.fromkeys(config.categories, receivers)
    marked: dict[int, Receiver] = {}
    names: dict[int, list[str]] = {}
    for name, given in by_category.items():
        for function in [given] if callable(given) else given:
            marked[id(function)] = function
            names.setdefault(id(function), []).append(name)
    for key, function in marked.items():
        vars(function).pop("__outboxd_categories__", None)  # of an earlier pipeline
        registry.receiver(*names[key])(function)
    return registry.build(config, list(marked.values()))


async def drain_once(dsn: str, receivers: Receivers, config: Config | None = None) -> Pipeline:
    """Drain what is due, as `--once` does, and return the pipeline for its counters."""
    config = config or configure()
    pipeline = Pipeline(config, build(config, receivers), lambda: dsn, bounded=True)
    await pipeline.open()
    async with asyncio.timeout(PATIENCE_S):
        await pipeline.run()
    return pipeline


@contextlib.asynccontextmanager
async def draining(dsn: str, receivers: Receivers, config: Config | None = None) -> AsyncIterator[Pipeline]:
    """
    Drain as the daemon does while the block lasts.

    It ends with a clean stop, which fails the test when the pipeline had ended by itself or does not end; with a
    hard stop when the block raises.
    """
    config = config or configure()
    pipeline = Pipeline(config, build(config, receivers), lambda: dsn)
    await pipeline.open()
    running = asyncio.create_task(pipeline.run(), name="pipeline")
    try:
        yield pipeline
        assert pipeline.live.stopping or not running.done(), "the pipeline ended by itself"
    except BaseException:
        pipeline.stop_hard()
        raise
    finally:
        pipeline.stop()
        async with asyncio.timeout(PATIENCE_S):
            await running


@dataclass
class ByHand:
    """One replica whose steps the test takes itself."""

    outbox: Outbox
    claims: Claims
    live: Live

    async def find(self) -> list[Candidate]:
        candidates, _ = await self.outbox.find_scheduled_shards(None)
        return candidates

    async def read(self, candidates: Sequence[Candidate], rows_per_shard: int = 1_000) -> list[int]:
        """Read the claimed shards' messages, whether they have failed before or not, and return their ids."""
        rows = await self.outbox.read_messages(
            candidates, rows_per_shard=rows_per_shard, rows_max=5_000, categories_off=[], failing_apart=False
        )
        return [row[ID] for row in rows]


@contextlib.asynccontextmanager
async def by_hand(dsn: str, config: Config | None = None) -> AsyncIterator[ByHand]:
    """Open the sessions of one replica of the first outbox, without any loop around them."""
    config = config or configure()
    async with connected(dsn) as connection:
        table = await inspect_table(connection, config.outboxes[0])
    live = Live(config.drain, build(config, Recorder()))
    replica = ByHand(
        Outbox(config.outboxes[0].name, table, schema=config.schema, dsn=lambda: dsn),
        Claims(lambda: dsn, config, live),
        live,
    )
    try:
        await replica.claims.open()
        yield replica
    finally:
        await replica.claims.close()
        await replica.outbox.close()


@contextlib.asynccontextmanager
async def connected(dsn: str) -> AsyncIterator[asyncpg.Connection]:
    """Open a further connection of the test's own."""
    connection = await asyncpg.connect(dsn)
    try:
        yield connection
    finally:
        connection.terminate()


async def write(
    connection: asyncpg.Connection,
    *,
    shard: Any = 1,
    obj: Any = 1,
    category: str | int = "MEMBER",
    scope: int = 0,
    payload: Any = None,
    due_in_s: float | None = None,
    table: str = "outbox",
    region: str | None = None,
) -> int:
    """
    Write one message as an application does, and return its id.

    Args:
        category: A name of `CATEGORIES`, or a number.
        payload: Anything that JSON can hold.
        due_in_s: Seconds until it is due; None leaves the table's default, which is long past.
    """
    values: dict[str, Any] = {
        "shard_scope": scope,
        "shard_identifier": shard,
        "category": CATEGORIES[category].value if isinstance(category, str) else category,
        "object_identifier": obj,
    }
    if payload is not None:
        values["payload"] = json.dumps(payload)
    if region is not None:
        values["region_name"] = region
    columns, places = list(values), [f"${number}" for number in range(1, len(values) + 1)]
    if due_in_s is not None:
        columns.append("scheduled_for")
        places.append(f"now() + interval '{due_in_s} seconds'")
    statement = f"INSERT INTO {quote_qualified(table)} ({', '.join(columns)}) VALUES ({', '.join(places)}) RETURNING id"
    return int(await connection.fetchval(statement, *values.values()))


async def write_many(
    connection: asyncpg.Connection,
    count: int,
    *,
    shards: int = 1,
    category: str = "MEMBER",
    due_in_s: float | None = None,
    table: str = "outbox",
) -> None:
    """Write `count` messages in one statement, each about an object of its own, round the shards 1 to `shards`."""
    due = "'2016-08-01 00:00+00'::timestamptz" if due_in_s is None else f"now() + interval '{due_in_s} seconds'"
    await connection.execute(
        f"INSERT INTO {quote_qualified(table)}"
        " (shard_scope, shard_identifier, category, object_identifier, scheduled_for)"
        f" SELECT 0, 1 + n % $2::int, $3::int, n, {due} FROM generate_series(0, $1::int - 1) AS n",
        count,
        shards,
        CATEGORIES[category].value,
    )


async def make_due(connection: asyncpg.Connection, table: str = "outbox") -> None:
    """Let the time pass until every message is due: what was waited, and so the next delay, stays the same."""
    await connection.execute(
        f"UPDATE {quote_qualified(table)} SET scheduled_from = scheduled_from - (scheduled_for - now()),"
        " scheduled_for = now() WHERE scheduled_for > now()"
    )


async def remaining(connection: asyncpg.Connection, table: str = "outbox") -> list[int]:
    """Tell the ids that are in the outbox, in order."""
    return [row[0] for row in await connection.fetch(f"SELECT id FROM {quote_qualified(table)} ORDER BY id")]


async def failures(connection: asyncpg.Connection) -> list[asyncpg.Record]:
    """Read what is known of failing objects."""
    return await connection.fetch(
        "SELECT * FROM outboxd.failure ORDER BY outbox, shard_scope, shard_identifier, category, object_identifier"
    )


async def outboxd_backends(connection: asyncpg.Connection, name: str = "") -> list[int]:
    """Tell the server processes of this database's outboxd sessions, of those called *name* when it is given."""
    rows = await connection.fetch(
        "SELECT pid FROM pg_stat_activity WHERE datname = current_database() AND application_name LIKE $1",
        f"outboxd: {name}%",
    )
    return [row[0] for row in rows]


async def shard_locks(connection: asyncpg.Connection) -> int:
    """Count the advisory locks on shards that are held in this database."""
    return int(
        await connection.fetchval(
            "SELECT count(*) FROM pg_locks WHERE locktype = 'advisory' AND classid::int8 = $1 AND granted"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())",
            SHARD_CLASS,
        )
    )


async def passes_more(pipeline: Pipeline, count: int = 3) -> None:
    """Await so many further full passes of the first outbox; each rests for a hundred times what it took."""
    scheduler = pipeline.branches[0].scheduler
    assert scheduler is not None
    passes = scheduler.finder.passes
    await eventually(lambda: scheduler.finder.passes >= passes + count)


async def until_empty(connection: asyncpg.Connection, table: str = "outbox") -> None:
    """Await until no message is in the outbox."""

    async def empty() -> bool:
        assert await remaining(connection, table) == []
        return True

    await eventually(empty)
