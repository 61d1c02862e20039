"""The session hook: what the unit of work changes has its message in the same transaction."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import pytest
import sqlalchemy
from sqlalchemy import ForeignKey, func, select, update
from sqlalchemy.ext.asyncio import AsyncSession, async_sessionmaker, create_async_engine
from sqlalchemy.ext.hybrid import hybrid_property
from sqlalchemy.orm import (
    DeclarativeBase,
    Mapped,
    Session,
    configure_mappers,
    load_only,
    mapped_column,
    relationship,
    sessionmaker,
)

from outboxd import errors
from outboxd.contrib.sqlalchemy import Producing, produce
from outboxd.producer import counts
from tests.drains import CONTROL, REGION, Recorder, configure, connected, drain_once
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


class Kid(Base):
    __tablename__ = "kid"
    __outbox__ = Producing("MEMBER", shard="organization")
    id: Mapped[int] = mapped_column(primary_key=True)
    organization: Mapped[int]
    parent_id: Mapped[int] = mapped_column(ForeignKey("parent.id"))


class Parent(Base):
    __tablename__ = "parent"
    __outbox__ = Producing("MEMBER", shard="id")
    id: Mapped[int] = mapped_column(primary_key=True)
    kids: Mapped[list[Kid]] = relationship(cascade="all, delete-orphan")


class Tenant(Base):
    __tablename__ = "tenant"
    __outbox__ = Producing("PROFILE", shard="id", region="region")
    id: Mapped[int] = mapped_column(primary_key=True)
    region: Mapped[str]


class ElsewhereBase(DeclarativeBase):
    pass


class Elsewhere(ElsewhereBase):
    __tablename__ = "elsewhere"
    __outbox__ = Producing("MEMBER", shard="id")
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
    session.add(Member(organization=7, slug="\0"))
    with pytest.raises((errors.InvalidOutboxError, sqlalchemy.exc.DataError)):
        session.commit()
    session.rollback()
    session.commit()
    assert await taken(connection) == []


@pytest.mark.parametrize(
    ("says", "complaint"),
    [
        ("MEMBER", "Wrong.__outbox__ is no Producing"),
        (Producing("MEMBER", shard="organisation"), "there is no column organisation, did you mean organization?"),
        (Producing("MEMBER", shard="name"), "there is no column name"),
        (Producing("MEMBER", shard="organization", columns=["slugg"]), "there is no column slugg, did you mean slug?"),
        (Producing("MEMBER", shard="organization", columns="slug"), "columns is a text, not a list of names"),
    ],
    ids=["another class", "misspelt shard", "hybrid", "misspelt column", "text"],
)
def test_a_class_that_says_it_wrongly_is_refused_when_it_is_mapped(says: object, complaint: str) -> None:
    class Separate(DeclarativeBase):
        pass

    class Wrong(Separate):
        __tablename__ = "wrong"
        __outbox__ = says
        id: Mapped[int] = mapped_column(primary_key=True)
        organization: Mapped[int]
        slug: Mapped[str]

        @hybrid_property
        def name(self) -> str:
            return self.slug

    with pytest.raises(errors.InvalidOutboxError, match=re.escape(complaint)):
        configure_mappers()
    Separate.registry.dispose()


async def test_what_relationships_do(session: Session, connection: asyncpg.Connection) -> None:
    parent, other = Parent(kids=[Kid(organization=7)]), Parent()
    session.add_all([parent, other])
    session.commit()
    await taken(connection)
    kid = parent.kids[0].id
    other.kids.append(parent.kids.pop())
    session.commit()
    assert await taken(connection) == [(7, kid, None)]
    other.kids.pop()  # an orphan: deleted, although nobody says so
    session.commit()
    assert await taken(connection) == [(7, kid, None)]
    assert await connection.fetchval("SELECT count(*) FROM kid") == 0


async def test_values_that_the_database_computes(session: Session, connection: asyncpg.Connection) -> None:
    member = Member(organization=7, slug="ada")
    session.add(member)
    session.commit()
    await taken(connection)
    member.slug = func.upper(Member.slug)
    session.commit()
    assert await taken(connection) == [(7, member.id, '{"slug": "ADA"}')]
    member.organization = Member.organization + 1
    session.commit()
    assert await taken(connection) == [(7, member.id, '{"slug": "ADA"}'), (8, member.id, '{"slug": "ADA"}')]


async def test_what_moves_is_told_of_where_it_was(session: Session, connection: asyncpg.Connection) -> None:
    member, tenant = Member(organization=7, slug="ada"), Tenant(id=3, region="eu")
    session.add_all([member, tenant])
    session.commit()
    await connection.execute("TRUNCATE outbox, control_outbox")
    was, member.id, tenant.region = member.id, 500, "us"
    session.commit()
    assert [row[:2] for row in await taken(connection)] == [(7, was), (7, 500)]
    rows = await connection.fetch("DELETE FROM control_outbox RETURNING region_name, shard_identifier")
    assert sorted(map(tuple, rows)) == [("eu", 3), ("us", 3)]
    member.organization = 8
    session.delete(member)  # the row was never in 8; whoever has heard of 8 by a rule of its own, hears of it
    session.commit()
    assert (7, 500) in [row[:2] for row in await taken(connection)]


async def test_an_object_that_takes_the_place_of_a_deleted_one(
    session: Session, connection: asyncpg.Connection
) -> None:
    old = Member(id=1, organization=7, slug="ada")
    session.add(old)
    session.commit()
    await taken(connection)
    session.delete(old)
    session.add(Member(id=1, organization=8, slug="grace"))
    session.commit()
    assert await taken(connection) == [(7, 1, '{"slug": "ada"}'), (8, 1, '{"slug": "grace"}')]


async def test_rows_that_have_no_shard(session: Session, connection: asyncpg.Connection) -> None:
    await connection.execute("ALTER TABLE member ALTER organization DROP NOT NULL")
    await connection.execute("INSERT INTO member (id, slug, seen) VALUES (1, 'ada', 0), (2, 'bob', 0), (3, 'eve', 0)")
    ada, bob, eve = (session.get(Member, number) for number in (1, 2, 3))
    assert ada is not None
    assert eve is not None
    ada.organization = 7
    session.delete(bob)
    session.commit()
    assert await taken(connection) == [(7, 1, '{"slug": "ada"}')]
    eve.slug = "mallory"
    with pytest.raises(errors.InvalidOutboxError, match="shard_identifier"):
        session.commit()


async def test_a_deleted_object_of_which_little_was_loaded(session: Session, connection: asyncpg.Connection) -> None:
    session.add(Member(id=1, organization=7, slug="ada"))
    session.commit()
    await taken(connection)
    session.expunge_all()
    session.delete(session.scalars(select(Member).options(load_only(Member.seen))).one())
    session.commit()
    assert await taken(connection) == [(7, 1, '{"slug": "ada"}')]


async def test_a_message_goes_where_its_row_goes(
    sessions: sessionmaker[Session], another_database: str, connection: asyncpg.Connection
) -> None:
    engine = sqlalchemy.create_engine(sqlalchemy_dsn(another_database, "psycopg"))
    ElsewhereBase.metadata.create_all(engine)
    with sessions(binds={ElsewhereBase: engine}) as session:
        session.add_all([Member(organization=7, slug="ada"), Elsewhere(id=9)])
        session.commit()
    engine.dispose()
    async with connected(another_database) as elsewhere:
        assert [row[:2] for row in await taken(elsewhere)] == [(9, 9)]
    assert [row[0] for row in await taken(connection)] == [7]


async def test_a_flush_of_many_objects_looks_at_each_once(session: Session, monkeypatch: pytest.MonkeyPatch) -> None:
    sets = 0

    def dirty(self: Session) -> Any:
        nonlocal sets
        sets += 1
        return original.__get__(self)

    original = Session.dirty
    members = [Member(organization=7, slug=str(number)) for number in range(100)]
    session.add_all(members)
    session.commit()
    monkeypatch.setattr(Session, "dirty", property(dirty))
    for member in members:
        member.slug += "x"
    session.flush()
    assert sets <= 1


async def test_whatever_is_produced_twice_is_written_once(
    sessions: sessionmaker[Session], connection: asyncpg.Connection
) -> None:
    with sessions() as session:
        produce(session)
        session.add(Profile(id=3))
        session.commit()
    assert await taken(connection, "control_outbox") == [(3, 3, None)]


async def test_what_a_closed_session_took_back_is_not_counted(sessions: sessionmaker[Session]) -> None:
    before = counts.saved.get(("region", "MEMBER"), 0)
    session = sessions()
    session.add(Member(organization=7, slug="ada"))
    session.flush()
    session.close()
    session.add(Note())
    session.commit()
    assert counts.saved.get(("region", "MEMBER"), 0) == before


async def test_an_async_sessionmaker(database: str, connection: asyncpg.Connection) -> None:
    engine = create_async_engine(sqlalchemy_dsn(database, "asyncpg"))
    async with producing(database, config=CONFIG) as producer:
        sessions = async_sessionmaker(engine)
        produce(sessions, producer)
        await connection.execute("CREATE TABLE profile (id int PRIMARY KEY)")
        async with sessions() as session, session.begin():
            session.add(Profile(id=3))
        for wrong in (AsyncSession, engine, 5):
            with pytest.raises(errors.InvalidOutboxError, match="give it the sessionmaker or async_sessionmaker"):
                produce(wrong)
    await engine.dispose()
    assert await taken(connection, "control_outbox") == [(3, 3, None)]


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
