"""`outbox_context` on every driver: what it promises on asyncpg holds on psycopg and SQLAlchemy, blocking or not."""

from __future__ import annotations

import asyncio
import contextlib
import threading
import uuid
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any
from urllib.parse import parse_qsl, urlencode, urlsplit, urlunsplit

import asyncpg
import psycopg
import pytest
import sqlalchemy
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column

from outboxd import errors
from outboxd.producer import NewMessage, Producer
from tests.drains import CONTROL, REGION, TEXT, UUID, Recorder, configure, draining, failing, remaining
from tests.eventually import PATIENCE_S
from tests.produce import producing

if TYPE_CHECKING:
    from outboxd import Message


class Base(DeclarativeBase):
    pass


class Account(Base):
    __tablename__ = "account"
    id: Mapped[int] = mapped_column(primary_key=True)


EVERY = configure(REGION, CONTROL, UUID, TEXT)
ID = uuid.UUID("0e5b2a0c-6a0b-4d43-9e9a-0a6f8d1f5c11")


class Driver:
    """One way to hold a connection; every method may be awaited, whether the driver blocks or not."""

    def __init__(self, target: Any, execute: Callable[[Any, str], Any]) -> None:
        self.target = target
        self._execute = execute

    async def execute(self, statement: str) -> None:
        await self._settled(self._execute(self.target, statement))

    async def save(
        self, producer: Producer, *messages: NewMessage, fails: bool = False, meanwhile: str = "", **options: Any
    ) -> list[int]:
        """Save in a context of its own, which fails then if that is wanted; errors of *meanwhile* are swallowed."""
        context = producer.context(self.target, **options)
        if self.is_async:
            async with context as outbox:
                ids = await outbox.save_many(messages)
                await self._swallow(meanwhile)
                if fails:
                    raise ZeroDivisionError
            return ids
        with context as blocking:
            ids = blocking.save_many(messages)
            await self._swallow(meanwhile)
            if fails:
                raise ZeroDivisionError
        return ids

    async def save_behind_the_end(self, producer: Producer, end: str) -> None:
        """End the transaction inside the block, then save."""
        context = producer.context(self.target)
        if self.is_async:
            async with context as outbox:
                await self._end(end)
                await outbox.save_many([member()])
        else:
            with context as blocking:
                await self._end(end)
                blocking.save_many([member()])

    async def end_behind_a_save(self, producer: Producer, end: str) -> None:
        """Save, then end the transaction inside the block."""
        context = producer.context(self.target, flush=True)
        if self.is_async:
            async with context as outbox:
                await outbox.save_many([member()])
                await self._end(end)
        else:
            with context as blocking:
                blocking.save_many([member()])
                await self._end(end)

    async def _end(self, end: str) -> None:
        if type(self.target).__module__.startswith("sqlalchemy"):
            await self._settled(getattr(self.target, end.lower())())
        else:
            await self.execute(end)

    async def _swallow(self, statement: str) -> None:
        if statement:
            with contextlib.suppress(Exception):
                await self.execute(statement)

    is_async = True

    async def _settled(self, result: Any) -> None:
        if isinstance(result, Awaitable):
            await result


class Blocking(Driver):
    is_async = False


def sqlalchemy_dsn(dsn: str, driver: str) -> str:
    parts = urlsplit(dsn)
    query = dict(parse_qsl(parts.query))
    if driver == "asyncpg":
        query.pop("sslmode", None)
    return urlunsplit(parts._replace(scheme=f"postgresql+{driver}", query=urlencode(query)))


@contextlib.asynccontextmanager
async def of_asyncpg(dsn: str) -> AsyncIterator[Driver]:
    connection = await asyncpg.connect(dsn)
    yield Driver(connection, lambda target, statement: target.execute(statement))
    await connection.close()


@contextlib.asynccontextmanager
async def of_psycopg_async(dsn: str) -> AsyncIterator[Driver]:
    async with await psycopg.AsyncConnection.connect(dsn) as connection:
        yield Driver(connection, lambda target, statement: target.execute(statement))


@contextlib.asynccontextmanager
async def of_psycopg(dsn: str, *, autocommit: bool = False) -> AsyncIterator[Driver]:
    with psycopg.connect(dsn, autocommit=autocommit) as connection:
        yield Blocking(connection, lambda target, statement: target.execute(statement))


@contextlib.asynccontextmanager
async def of_async_session(dsn: str) -> AsyncIterator[Driver]:
    engine = create_async_engine(sqlalchemy_dsn(dsn, "asyncpg"))
    async with AsyncSession(engine) as session:
        yield Driver(session, lambda target, statement: target.execute(sqlalchemy.text(statement)))
    await engine.dispose()


@contextlib.asynccontextmanager
async def of_async_connection(dsn: str) -> AsyncIterator[Driver]:
    engine = create_async_engine(sqlalchemy_dsn(dsn, "psycopg"))
    async with engine.connect() as connection:
        yield Driver(connection, lambda target, statement: target.execute(sqlalchemy.text(statement)))
    await engine.dispose()


@contextlib.asynccontextmanager
async def of_session(dsn: str) -> AsyncIterator[Driver]:
    engine = sqlalchemy.create_engine(sqlalchemy_dsn(dsn, "psycopg"))
    with Session(engine) as session:
        yield Blocking(session, lambda target, statement: target.execute(sqlalchemy.text(statement)))
    engine.dispose()


@contextlib.asynccontextmanager
async def of_connection(dsn: str) -> AsyncIterator[Driver]:
    engine = sqlalchemy.create_engine(sqlalchemy_dsn(dsn, "psycopg"))
    with engine.connect() as connection:
        yield Blocking(connection, lambda target, statement: target.execute(sqlalchemy.text(statement)))
    engine.dispose()


OPENERS = {
    "asyncpg": of_asyncpg,
    "psycopg async": of_psycopg_async,
    "psycopg": of_psycopg,
    "psycopg autocommit": lambda dsn: of_psycopg(dsn, autocommit=True),
    "sqlalchemy async session": of_async_session,
    "sqlalchemy async connection": of_async_connection,
    "sqlalchemy session": of_session,
    "sqlalchemy connection": of_connection,
}


@pytest.fixture(params=OPENERS, ids=str)
async def driver(request: pytest.FixtureRequest, database: str) -> AsyncIterator[Driver]:
    async with OPENERS[request.param](database) as opened:
        yield opened


def member(obj: int = 1, **more: Any) -> NewMessage:
    return NewMessage(**{"category": "MEMBER", "shard_identifier": 1, "object_identifier": obj, **more})


async def test_messages_of_every_kind_are_written(
    database: str, driver: Driver, connection: asyncpg.Connection
) -> None:
    async with producing(database, config=EVERY) as producer:
        ids = await driver.save(
            producer,
            member(outbox="region", payload={"a": "it's 100% :p1 $1"}, headers={"x": [1]}),
            member(outbox="uuid", shard_identifier=ID, object_identifier=ID),
            member(outbox="text", shard_identifier="é :p2 %s", object_identifier="$2"),
            NewMessage(category="PROFILE", shard_identifier=1, object_identifier=2, region_name="eu"),
            member(2, outbox="region"),
        )

    assert ids == [1, 1, 1, 1, 2]
    first, second = await connection.fetch("SELECT payload, headers FROM outbox ORDER BY id")
    assert tuple(first) == ('{"a": "it\'s 100% :p1 $1"}', '{"x": [1]}')
    assert tuple(second) == (None, None)
    assert await connection.fetchval("SELECT shard_identifier FROM uuid_outbox") == ID
    assert await connection.fetchval("SELECT shard_identifier || object_identifier FROM text_outbox") == "é :p2 %s$2"
    assert await connection.fetchval("SELECT region_name FROM control_outbox") == "eu"


async def test_an_error_rolls_back_and_the_connection_is_as_good_as_new(
    database: str, driver: Driver, connection: asyncpg.Connection
) -> None:
    async with producing(database) as producer:
        with pytest.raises(ZeroDivisionError):
            await driver.save(producer, member(), fails=True)
        assert await remaining(connection) == []
        await driver.save(producer, member(2))

    assert len(await remaining(connection)) == 1


async def test_a_message_that_breaks_a_rule_leaves_the_transaction_alone(
    database: str, driver: Driver, connection: asyncpg.Connection
) -> None:
    async with producing(database) as producer:
        with pytest.raises(errors.InvalidOutboxError):
            await driver.save(producer, member(), member(payload="\0"))
        await driver.save(producer, member(3))

    assert len(await remaining(connection)) == 1


async def test_it_joins_an_open_transaction(database: str, driver: Driver, connection: asyncpg.Connection) -> None:
    if isinstance(driver.target, asyncpg.Connection):
        pytest.skip("it refuses a BEGIN that is not its own; see test_context for its own")
    async with producing(database) as producer:
        await driver.execute("BEGIN" if getattr(driver.target, "autocommit", False) is True else "SELECT 1")
        await driver.save(producer, member())
        assert await remaining(connection) == []
        with pytest.raises(errors.OutboxContextError, match="inside an open transaction"):
            await driver.save(producer, member(), flush=True)
        await driver.execute("ROLLBACK")

    assert await remaining(connection) == []


async def test_flush_delivers_after_the_commit(database: str, driver: Driver, connection: asyncpg.Connection) -> None:
    threads: set[int] = set()

    def note(_: Message) -> None:
        threads.add(threading.get_ident())

    seen = Recorder(note)
    async with producing(database, seen) as producer:
        await driver.save(producer, member(payload="x"), flush=True)
        await driver.save(producer, member(2), flush=True)
        if not driver.is_async:
            await asyncio.to_thread(producer.close_blocking)

    assert (seen.objects, await remaining(connection)) == ([1, 2], [])
    assert (threading.get_ident() in threads) == driver.is_async


async def test_an_error_that_was_swallowed_is_no_flush(database: str, driver: Driver) -> None:
    """The server would answer the COMMIT with a ROLLBACK: nothing was written, nothing is there to be delivered."""
    seen = Recorder()
    async with producing(database, seen) as producer:
        with pytest.raises(Exception, match="current transaction is aborted"):
            await driver.save(producer, member(), meanwhile="SELECT 1 / 0", flush=True)
        await driver.save(producer, member(2), flush=True)
        if not driver.is_async:
            await asyncio.to_thread(producer.close_blocking)

    assert seen.objects == [2]


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_nothing_is_written_behind_the_end_of_the_transaction(
    database: str, driver: Driver, connection: asyncpg.Connection, end: str
) -> None:
    """It would be a message without its change."""
    async with producing(database) as producer:
        with pytest.raises(errors.OutboxContextError, match="ended inside the block"):
            await driver.save_behind_the_end(producer, end)

    assert await remaining(connection) == []


@pytest.mark.parametrize("end", ["COMMIT", "ROLLBACK"])
async def test_a_transaction_that_was_ended_in_the_block_is_an_error(
    database: str, driver: Driver, connection: asyncpg.Connection, end: str
) -> None:
    """What a ROLLBACK has taken back would look delivered."""
    seen = Recorder()
    async with producing(database, seen) as producer:
        with pytest.raises(errors.OutboxContextError, match="ended inside the block"):
            await driver.end_behind_a_save(producer, end)
        await driver.save(producer, member(2))

    assert seen.objects == []
    assert len(await remaining(connection)) == (2 if end == "COMMIT" else 1)


@pytest.mark.parametrize("factory", [psycopg.RawCursor, psycopg.ClientCursor])
async def test_whatever_cursors_an_application_uses(
    database: str, connection: asyncpg.Connection, factory: type[psycopg.Cursor[Any]]
) -> None:
    async with producing(database) as producer:
        with psycopg.connect(database, cursor_factory=factory) as opened, producer.context(opened) as outbox:
            outbox.save_many([member()])

    assert len(await remaining(connection)) == 1


async def test_a_failure_of_a_flush(database: str, driver: Driver, connection: asyncpg.Connection) -> None:
    async with producing(database, Recorder(failing())) as producer:
        with pytest.raises(errors.OutboxFlushError, match="object 1 is broken"):
            await driver.save(producer, member(), flush=True)
        if not driver.is_async:
            await asyncio.to_thread(producer.close_blocking)

    assert len(await remaining(connection)) == 1


async def test_without_receivers_the_daemon_delivers(
    database: str, driver: Driver, connection: asyncpg.Connection
) -> None:
    seen = Recorder()
    async with producing(database) as producer, draining(database, seen, configure(poll_interval_s=0.05)):
        context = producer.context(driver.target, flush=True)
        if driver.is_async:
            async with context as outbox:
                await outbox.save_many([member()])
            await outbox.delivered(timeout_s=10)
        else:

            def produce() -> None:
                with context as blocking:
                    blocking.save_many([member()])
                blocking.delivered(timeout_s=10)

            await asyncio.to_thread(produce)

    assert seen.objects == [1]
    assert await remaining(connection) == []


async def test_the_wrong_kind_of_with_is_said(database: str, driver: Driver) -> None:
    async with producing(database) as producer:
        context = producer.context(driver.target)
        if driver.is_async:
            with pytest.raises(errors.OutboxContextError, match=r"needs `async with outbox_context"):
                context.__enter__()
        else:
            with pytest.raises(errors.OutboxContextError, match=r"needs `with outbox_context"):
                await context.__aenter__()


async def test_nested_contexts_that_block(database: str, connection: asyncpg.Connection) -> None:
    async with producing(database) as producer, of_psycopg(database) as driver:
        with producer.context(driver.target) as outer:
            outer.save_many([member(1)])
            with contextlib.suppress(ZeroDivisionError), producer.context(driver.target) as inner:
                inner.save("MEMBER", shard_identifier=1, object_identifier=2)
                raise ZeroDivisionError
            with producer.context(driver.target) as inner:
                inner.save("MEMBER", shard_identifier=1, object_identifier=3)

    rows = await connection.fetch("SELECT object_identifier FROM outbox ORDER BY id")
    assert [row[0] for row in rows] == [1, 3]


async def test_orm_changes_and_messages_are_one_transaction(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE account (id int PRIMARY KEY)")
    async with (
        producing(database) as producer,
        of_async_session(database) as driver,
        producer.context(driver.target) as outbox,
    ):
        driver.target.add(Account(id=7))
        await outbox.save("MEMBER", shard_identifier=1, object_identifier=7)
        assert await connection.fetchval("SELECT count(*) FROM account") == 0

    assert await connection.fetchval("SELECT id FROM account") == 7
    assert len(await remaining(connection)) == 1


async def test_a_receiver_that_blocks_its_loop_with_a_flush_of_its_own(
    database: str, connection: asyncpg.Connection
) -> None:
    """It runs in the loop of blocking flushes, and would wait for itself."""

    async def receive(message: Message) -> None:
        if message.object_identifier == 1:
            with psycopg.connect(database) as own, producer.context(own, flush=True) as inner:
                inner.save("MEMBER", shard_identifier=2, object_identifier=2)

    seen = Recorder(receive)
    async with producing(database, seen) as producer, of_psycopg(database) as driver:

        def produce() -> None:
            with producer.context(driver.target, flush=True) as outbox:
                outbox.save("MEMBER", shard_identifier=1, object_identifier=1)
            producer.close_blocking()

        async with asyncio.timeout(PATIENCE_S):
            await asyncio.to_thread(produce)

    assert seen.objects == [1, 2]
    assert await remaining(connection) == []


async def test_a_commit_that_fails_leaves_the_session_usable(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE account (id int PRIMARY KEY); INSERT INTO account VALUES (7)")
    async with producing(database) as producer, of_session(database) as driver:
        with pytest.raises(sqlalchemy.exc.IntegrityError):
            _add_twice(producer, driver.target)
        assert not driver.target.in_transaction()
        with producer.context(driver.target) as outbox:
            outbox.save("MEMBER", shard_identifier=1, object_identifier=2)

    assert len(await remaining(connection)) == 1


def _add_twice(producer: Producer, session: Session) -> None:
    with producer.context(session) as outbox:
        outbox.save("MEMBER", shard_identifier=1, object_identifier=1)
        session.add(Account(id=7))


async def test_a_pool_is_no_connection(database: str) -> None:
    async with producing(database) as producer, asyncpg.create_pool(database, min_size=1, max_size=1) as pool:
        with pytest.raises(errors.OutboxContextError, match=r"takes no asyncpg\.pool\.Pool"):
            producer.context(pool)


async def test_something_else_of_a_driver_s_is_refused(database: str) -> None:
    async with producing(database) as producer:
        engine = sqlalchemy.create_engine("postgresql+psycopg://")
        with pytest.raises(errors.OutboxContextError, match="takes no sqlalchemy"):
            producer.context(engine)
