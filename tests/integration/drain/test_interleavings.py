"""Nothing is lost (I1, I2), whatever the order in which producers commit, receivers end and drains run."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.drains import (
    CATEGORIES,
    DEAD,
    Recorder,
    configure,
    connected,
    drain_once,
    failures,
    make_due,
    remaining,
    write,
)

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message

PRODUCERS = 2
Written = tuple[int, str, int]
"""Shard, category and object of a message."""


@dataclass(frozen=True)
class Insert:
    """A producer writes a message in its open transaction; the id is given now, whenever it commits."""

    producer: int
    shard: int
    category: str
    obj: int


@dataclass(frozen=True)
class End:
    """A producer ends its transaction."""

    producer: int
    commit: bool


@dataclass(frozen=True)
class Deliver:
    """What happens inside one delivery, and how it ends."""

    meanwhile: tuple[Insert | End, ...]
    succeeds: bool


@dataclass(frozen=True)
class Drain:
    """A drain: what happens in its first deliveries; those after them succeed."""

    deliveries: tuple[Deliver, ...]
    all_due: bool


producers = st.integers(0, PRODUCERS - 1)
inserts = st.builds(
    Insert, producers, st.integers(1, 2), st.sampled_from(["MEMBER", "AUDIT", "SKIPPING"]), st.integers(1, 2)
)
steps = st.one_of(inserts, st.builds(End, producers, st.sampled_from([True, True, True, False])))
deliveries = st.builds(Deliver, st.lists(steps, max_size=3).map(tuple), st.booleans())
drains = st.builds(Drain, st.lists(deliveries, max_size=4).map(tuple), st.booleans())
plans = st.lists(st.one_of(inserts, steps, drains), min_size=3, max_size=14)


@dataclass
class World:
    """Producers and receivers, and what is known of every message that was ever committed."""

    dsn: str
    connection: asyncpg.Connection
    producers: list[asyncpg.Connection]
    open: dict[int, Any] = field(default_factory=dict)
    uncommitted: dict[int, dict[int, Written]] = field(default_factory=dict)
    committed: dict[int, Written] = field(default_factory=dict)
    covered: set[int] = field(default_factory=set)
    upcoming: list[Deliver] = field(default_factory=list)

    async def take(self, step: Insert | End | Drain) -> None:
        if isinstance(step, Insert):
            await self._insert(step)
        elif isinstance(step, End):
            await self._end(step)
        else:
            await self._drain(step)

    async def _insert(self, step: Insert) -> None:
        producer = self.producers[step.producer]
        if step.producer not in self.open:
            self.open[step.producer] = producer.transaction()
            await self.open[step.producer].start()
            self.uncommitted[step.producer] = {}
        written = await write(producer, shard=step.shard, category=step.category, obj=step.obj)
        self.uncommitted[step.producer][written] = (step.shard, step.category, step.obj)

    async def _end(self, step: End) -> None:
        transaction = self.open.pop(step.producer, None)
        if transaction is None:
            return
        if step.commit:
            await transaction.commit()
            self.committed |= self.uncommitted[step.producer]
        else:
            await transaction.rollback()

    async def _drain(self, step: Drain) -> None:
        if step.all_due:
            await make_due(self.connection)
        self.upcoming = list(step.deliveries)
        await drain_once(self.dsn, Recorder(self.receive), configure(concurrency=1))

    async def receive(self, message: Message) -> None:
        covers = {written for written, about in self.committed.items() if self._is_about(message, written, about)}
        assert message.id in covers
        deliver = self.upcoming.pop(0) if self.upcoming else Deliver((), succeeds=True)
        for step in deliver.meanwhile:
            await self.take(step)
        if not deliver.succeeds:
            raise ValueError("as planned")
        self.covered |= covers

    @staticmethod
    def _is_about(message: Message, written: int, about: Written) -> bool:
        same = about == (message.shard_identifier, message.category_name, message.object_identifier)
        return same and (CATEGORIES[message.category_name].coalesce or written == message.id)

    async def assert_nothing_is_lost(self) -> None:
        left = set(await remaining(self.connection))
        assert left <= set(self.committed)
        assert set(self.committed) - left <= self.covered

    async def finish(self) -> None:
        """Commit everything and drain until nothing can be left."""
        for producer in range(PRODUCERS):
            await self._end(End(producer, commit=True))
        await self._drain(Drain((), all_due=True))
        assert await remaining(self.connection) == []
        assert set(self.committed) <= self.covered
        assert await failures(self.connection) == []


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(plan=plans, prepared=st.booleans())
async def test_every_committed_message_is_delivered_or_still_there(
    database: str, connection: asyncpg.Connection, plan: list[Insert | End | Drain], prepared: bool
) -> None:
    await connection.execute("TRUNCATE outbox, outboxd.failure, outboxd.worker")
    if prepared:
        await connection.execute(DEAD)
    async with connected(database) as one, connected(database) as other:
        world = World(database, connection, [one, other])
        for step in plan:
            await world.take(step)
            await world.assert_nothing_is_lost()
        await world.finish()
