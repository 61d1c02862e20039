"""The session hook: what the unit of work changes has its message in the same transaction."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy import update
from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, sessionmaker

from outboxd import errors
from outboxd.contrib.sqlalchemy import Producing, produce
from outboxd.producer import counts
from tests.drains import CONTROL, REGION, Recorder, configure, drain_once
from tests.integration.produce.test_drivers import sqlalchemy_dsn
from tests.produce import producing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import asyncpg

CONFIG = configure(REGION, CONTROL)


class Base(DeclarativeBase):
    pass


class Member(Base):
    __tablename__ = "member"
    __outbox__ = Producing(
        "MEMBER", shard="organization", payload=lambda member: {"slug": member.slug}, columns=("slug",)
    )
    id: Mapped[int] = mapped_column(primary_key=True)
    organization: Mapped[int]
    slug: Mapped[str]
    seen: Mapped[int] = mapped_column(default=0)


class Profile(Base):
    __tablename__ = "profile"
    __outbox__ = Producing("PROFILE", shard="id", region=lambda _: "eu")
    id: Mapped[int] = mapped_column(primary_key=True)


class Note(Base):
    __tablename__ = "note"
    id: Mapped[int] = mapped_column(primary_key=True)


class Wrong(Base):
    __tablename__ = "wrong"
    __outbox__ = "MEMBER"
    id: Mapped[int] = mapped_column(primary_key=True)


@pytest.fixture
async def sessions(database: str) -> AsyncIterator[sessionmaker[Session]]:
    engine = sqlalchemy.create_engine(sqlalchemy_dsn(database, "psycopg"))
    Base.metadata.create_all(engine)
    made = sessionmaker(engine)
    async with producing(database, config=CONFIG) as producer:
        produce(made, producer)
        yield made
    engine.dispose()


@pytest.fixture
def session(sessions: sessionmaker[Session]) -> Iterator[Session]:
    with sessions() as opened:
        yield opened


async def taken(connection: asyncpg.Connection, table: str = "outbox") -> list[tuple[Any, ...]]:
    rows = await connection.fetch(f"DELETE FROM {table} RETURNING shard_identifier, object_identifier, payload")
    return sorted(tuple(row) for row in rows)


async def test_what_is_added_changed_and_deleted(session: Session, connection: asyncpg.Connection) -> None:
    ada, bob = Member(organization=7, slug="ada"), Member(organization=7, slug="bob")
    session.add_all([ada, bob, Profile(id=3), Note()])
    session.flush()
    assert await taken(connection) == []
    session.commit()
    assert await taken(connection) == [(7, ada.id, '{"slug": "ada"}'), (7, bob.id, '{"slug": "bob"}')]
    assert await taken(connection, "control_outbox") == [(3, 3, None)]
    ada.slug = "grace"
    bob.seen += 1
    session.commit()
    assert await taken(connection) == [(7, ada.id, '{"slug": "grace"}')]
    bob.organization = 8
    session.commit()
    assert await taken(connection) == [(7, bob.id, '{"slug": "bob"}'), (8, bob.id, '{"slug": "bob"}')]
    number = ada.id
    session.delete(ada)
    session.commit()
    assert await taken(connection) == [(7, number, '{"slug": "grace"}')]


async def test_a_rollback_takes_them_along(session: Session, connection: asyncpg.Connection) -> None:
    before = counts.saved.get(("region", "MEMBER"), 0)
    session.add(Member(organization=7, slug="ada"))
    session.flush()
    session.rollback()
    session.commit()
    assert await taken(connection) == []
    session.add(Member(organization=7, slug="bob"))
    session.commit()
    assert counts.saved["region", "MEMBER"] == before + 1


async def test_a_savepoint_takes_its_own_along(session: Session, connection: asyncpg.Connection) -> None:
    session.add(Member(organization=7, slug="ada"))
    savepoint = session.begin_nested()
    session.add(Member(organization=7, slug="bob"))
    session.flush()
    savepoint.rollback()
    session.commit()
    assert [row[2] for row in await taken(connection)] == ['{"slug": "ada"}']


async def test_statements_that_pass_by_the_session_do_not(session: Session, connection: asyncpg.Connection) -> None:
    session.add(Member(organization=7, slug="ada"))
    session.commit()
    await taken(connection)
    session.execute(update(Member).values(slug="x"))
    session.commit()
    assert await taken(connection) == []


async def test_an_object_that_breaks_a_rule_fails_the_flush(session: Session, connection: asyncpg.Connection) -> None:
    session.add(Wrong())
    with pytest.raises(errors.InvalidOutboxError, match=r"Wrong\.__outbox__ is no Producing"):
        session.flush()
    session.rollback()
    session.add(Member(organization=7, slug="\0"))
    with pytest.raises((errors.InvalidOutboxError, sqlalchemy.exc.DataError)):
        session.commit()
    session.rollback()
    assert await taken(connection) == []


async def test_an_async_session(database: str, connection: asyncpg.Connection) -> None:
    await connection.execute("CREATE TABLE member (id serial PRIMARY KEY, organization int, slug text, seen int)")
    engine = create_async_engine(sqlalchemy_dsn(database, "asyncpg"))
    seen = Recorder()
    async with producing(database, config=CONFIG) as producer, AsyncSession(engine) as session:
        produce(session.sync_session, producer)
        session.add(Member(organization=7, slug="ada"))
        await session.commit()
        await drain_once(database, seen, CONFIG)
    await engine.dispose()

    assert [(message.shard_identifier, message.payload) for message in seen.messages] == [(7, {"slug": "ada"})]
