"""
No row is missed and no watermark moves back (I12), whatever the order in which versions are raised, options set, rows
written and deleted, daemons switched, and wherever a batch dies.
"""

from __future__ import annotations

import contextlib
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import msgspec
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from redis.asyncio import Redis

from outboxd import errors
from outboxd.watermark import RedisWatermarks, State
from tests.drains import outboxd_backends
from tests.eventually import eventually
from tests.walks import create_members, model, one_batch, walking, watermark, with_models

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

    from outboxd.backfill import Backfill

TABLE = "organizationmember"
OPTION = f"outbox_replication.{TABLE}.replication_version"
REDIS_KEY = f"outbox_backfill.{TABLE}"


@dataclass(frozen=True)
class Raise:
    """A daemon is deployed with the next version."""

    daemon: int


@dataclass(frozen=True)
class SetOption:
    """Somebody gates the version, or (None) no longer does."""

    version: int | None


@dataclass(frozen=True)
class Insert:
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Delete:
    keys: tuple[int, ...]


@dataclass(frozen=True)
class Batch:
    """A daemon writes a batch, and dies before the statement of this number (COMMIT is one) if there are so many."""

    daemon: int
    rows: int
    dies_at: int
    killed_by: Literal["itself", "server"]


Step = Raise | SetOption | Insert | Delete | Batch

NO_DEATH = 15
"""More steps than a batch has."""

daemons = st.integers(0, 1)
keys = st.lists(st.integers(-3, 12), min_size=1, max_size=6, unique=True).map(tuple)
killers = st.sampled_from(["itself", "itself", "server"])
batches = st.builds(Batch, daemons, st.sampled_from([2, 3, 5, 20]), st.integers(1, NO_DEATH), killers)
changes = st.one_of(
    st.builds(Raise, daemons),
    st.builds(SetOption, st.sampled_from([None, None, 0, 1, 2])),
    st.builds(Insert, keys),
    st.builds(Delete, keys),
)
plans = st.lists(st.tuples(st.lists(changes, max_size=1), batches), min_size=10, max_size=20)
Plan = list[tuple[list[Step], Batch]]


class Death:
    """
    Watches the statements of one context and ends it before one of them.

    Args:
        backfill: Its session, and its connection to Redis where there is one, are watched.
        kill: Makes the server end the session.
    """

    def __init__(self, backfill: Backfill, kill: Callable[[], Any]) -> None:
        self._kill = kill
        self._session = backfill.session
        self._left = NO_DEATH
        self._killed_by = ""
        self.happened = False
        fetch, transaction = backfill.session.fetch, backfill.session.transaction

        async def watched_fetch(doing: str, statement: str, *args: Any) -> list[asyncpg.Record]:
            await self._step()
            return await fetch(doing, statement, *args)

        @contextlib.asynccontextmanager
        async def watched_transaction(doing: str) -> AsyncIterator[Any]:
            async with transaction(doing) as inner:

                async def inside(statement: str, *args: Any) -> list[asyncpg.Record]:
                    await self._step()
                    return await inner(statement, *args)

                yield inside
                await self._step()

        backfill.session.fetch = watched_fetch  # type: ignore[method-assign]
        backfill.session.transaction = watched_transaction  # type: ignore[method-assign]
        if isinstance(backfill.watermarks, RedisWatermarks):
            self._watch_redis(backfill.watermarks)

    def at(self, number: int, killed_by: str) -> None:
        """Die before the statement of this number, counted from now."""
        self._left, self._killed_by, self.happened = number, killed_by, False

    def _watch_redis(self, watermarks: RedisWatermarks) -> None:
        call = watermarks._call

        async def watched_call(command: str, key: str, *arguments: Any) -> Any:
            await self._step()
            return await call(command, key, *arguments)

        watermarks._call = watched_call  # type: ignore[method-assign]

    async def _step(self) -> None:
        self._left -= 1
        if self._left:
            return
        self.happened = True
        if self._killed_by == "server":
            await self._kill()
        else:
            self._session.terminate()
            raise errors.StoreUnavailable("as planned")


@dataclass
class World:
    """Two daemons, a table, and what is known of every walk over it."""

    dsn: str
    connection: asyncpg.Connection
    redis: Redis | None = None
    redis_url: str = ""
    coded: list[int] = field(default_factory=lambda: [1, 1])
    option: int | None = None
    contexts: dict[int, tuple[int, Backfill, Death]] = field(default_factory=dict)
    stack: contextlib.AsyncExitStack = field(default_factory=contextlib.AsyncExitStack)
    began: dict[int, set[int]] = field(default_factory=dict)
    last: State = field(default_factory=State)

    async def take(self, step: Step) -> None:
        match step:
            case Raise(daemon):
                self.coded[daemon] = max(self.coded) + 1 if self.coded[daemon] == max(self.coded) else max(self.coded)
            case SetOption(version):
                self.option = version
            case Insert(keys):
                await self.connection.execute(
                    f"INSERT INTO {TABLE} SELECT unnest($1::int8[]), 1 ON CONFLICT DO NOTHING", keys
                )
            case Delete(keys):
                await self.connection.execute(f"DELETE FROM {TABLE} WHERE id = ANY ($1::int8[])", keys)
                for existed in self.began.values():  # what bears such a key later is another row
                    existed.difference_update(keys)
            case Batch():
                await self._batch(step)

    async def _batch(self, step: Batch) -> None:
        version = min(self.coded[step.daemon], self.coded[step.daemon] if self.option is None else self.option)
        backfill, death = await self._context(step.daemon, version)
        before = await self.state()
        begins = version > before.version or (version == before.version and before.low_bound == "0")
        if begins:
            self.began[version] = await self.keys()
        death.at(step.dies_at, step.killed_by)
        try:
            await one_batch(backfill, step.rows)
        except errors.OutboxdError:
            assert death.happened
        if death.happened:
            for daemon in list(self.contexts) if step.killed_by == "server" else [step.daemon]:
                await self._bury(daemon)
        await self.assert_as_promised(before, version)

    async def _context(self, daemon: int, version: int) -> tuple[Backfill, Death]:
        """The daemon's context; another one when it was killed or has another version to walk with."""
        if daemon in self.contexts and self.contexts[daemon][0] != self.coded[daemon] * 1000 + version:
            await self._bury(daemon)
        if daemon not in self.contexts:
            walked = model(
                replication_version=self.coded[daemon], payload_sql=f"to_jsonb({version}) -- the version that is run"
            )
            config = with_models(walked, state="redis" if self.redis else "postgres")
            backfill = await self.stack.enter_async_context(walking(self.dsn, config, self.redis_url))
            death = Death(backfill, self._kill)
            self.contexts[daemon] = (self.coded[daemon] * 1000 + version, backfill, death)
        _, backfill, death = self.contexts[daemon]
        versions = {} if self.option is None else {TABLE: self.option}
        backfill.switchboard.gates = type(backfill.switchboard.gates)(versions=versions)
        return backfill, death

    async def _kill(self) -> None:
        """Kill every session that walks, as a failover does."""
        pids = await outboxd_backends(self.connection, "backfill")
        await self.connection.execute("SELECT pg_terminate_backend(pid) FROM unnest($1::int[]) AS pid", pids)

    async def _bury(self, daemon: int) -> None:
        """Close a context and wait until its locks are gone."""
        _, backfill, _ = self.contexts.pop(daemon)
        await backfill.close()
        open_ = [other for _, other, _ in self.contexts.values()]

        async def gone() -> bool:
            return len(await outboxd_backends(self.connection, "backfill")) <= len(open_)

        await eventually(gone)

    async def state(self) -> State:
        if self.redis is None:
            return State(*(await watermark(self.connection) or ("0", 1)))
        raw = await self.redis.get(REDIS_KEY)
        low_bound, version = msgspec.json.decode(raw) if raw else (0, 1)
        return State(str(low_bound), version)

    async def keys(self) -> set[int]:
        return {row[0] for row in await self.connection.fetch(f"SELECT id FROM {TABLE}")}

    async def messages(self) -> Counter[tuple[int, int]]:
        """How many messages there are of each version and key."""
        rows = await self.connection.fetch("SELECT payload::text::int, object_identifier FROM outbox")
        return Counter((row[0], row[1]) for row in rows)

    async def assert_as_promised(self, before: State, version: int) -> None:
        now = await self.state()
        assert order(now) >= order(self.last), f"from {self.last} to {now}"
        self.last = now
        messages = await self.messages()
        if self.redis is None:
            assert not messages or max(messages.values()) == 1, f"twice: {messages}"
        if now.version > version >= before.version:  # the walk has come to its end
            assert now == State("0", version + 1)
            missed = {key for key in self.began[version] & await self.keys() if not messages[version, key]}
            assert not missed, f"version {version} missed {missed}"

    async def finish(self) -> None:
        """Without options and deaths every walk comes to its end."""
        self.option, self.coded = None, [max(self.coded)] * 2
        for number in range(60):
            if (await self.state()).version > self.coded[0]:
                break
            await self._batch(Batch(number % 2, 5, NO_DEATH, "itself"))
            if number % 2 == 0:
                await self._bury(0)
        assert await self.state() == State("0", self.coded[0] + 1)


def order(state: State) -> tuple[int, float]:
    return (state.version, float("-inf") if state.low_bound == "0" else int(state.low_bound))


async def live_through(world: World, plan: Plan) -> None:
    async with world.stack:
        await world.take(Insert(tuple(range(-2, 9))))
        for change, batch in plan:
            for step in (*change, batch):
                await world.take(step)
        await world.finish()


SETTINGS: dict[str, Any] = {
    "deadline": None,
    "suppress_health_check": [HealthCheck.function_scoped_fixture],
    "phases": [Phase.explicit, Phase.reuse, Phase.generate],  # to shrink a plan takes minutes
}


@settings(max_examples=40, **SETTINGS)
@given(plan=plans)
async def test_every_row_gets_one_message_of_each_version_wherever_daemons_die(
    database: str, connection: asyncpg.Connection, plan: Plan
) -> None:
    await begin_anew(connection)
    await live_through(World(database, connection), plan)


@settings(max_examples=25, **SETTINGS)
@given(plan=plans)
async def test_with_redis_every_row_gets_a_message_of_each_version_wherever_daemons_die(
    database: str, connection: asyncpg.Connection, valkey: str, plan: Plan
) -> None:
    await begin_anew(connection)
    async with Redis.from_url(valkey) as redis:
        await redis.delete(REDIS_KEY)
        await live_through(World(database, connection, redis, valkey), plan)


async def begin_anew(connection: asyncpg.Connection) -> None:
    if await connection.fetchval("SELECT to_regclass($1)", TABLE) is None:
        await create_members(connection, 0)
    await connection.execute(f"TRUNCATE {TABLE}, outbox, outboxd.backfill_watermark, outboxd.backfill_spending")


async def test_the_test_itself_kills_before_each_statement(database: str, connection: asyncpg.Connection) -> None:
    """A batch has eight steps: the lock of the walk, six statements, COMMIT."""
    await create_members(connection, 3)
    survived = []
    for number in range(1, 12):
        await connection.execute("TRUNCATE outbox, outboxd.backfill_watermark")
        async with walking(database) as backfill:
            death = Death(backfill, lambda: None)
            death.at(number, "itself")
            with contextlib.suppress(errors.OutboxdError):
                await one_batch(backfill, 2)
                survived.append(number)
        written = await connection.fetchval("SELECT count(*) FROM outbox")
        assert (written, await watermark(connection)) in [(0, None), (2, ("3", 1))]
    assert survived == [9, 10, 11]
