"""
SQLAlchemy: messages for mapped objects that have changed, written in the flush that writes the change.

    class Member(Base):
        __tablename__ = "member"
        __outbox__ = Producing("MEMBER_UPDATE", shard="organization_id")
        ...

    produce(sessions)       # a sessionmaker or async_sessionmaker, a class of sessions, or one session

What is inserted, updated or deleted through the session's unit of work gets a message in the same transaction, on the
same connection. Statements that pass by it (`session.execute(update(...))`, bulk operations, raw SQL, cascades of the
database) do not: `capture = true` sees those, too.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from sqlalchemy import event, inspect
from sqlalchemy.ext.asyncio import AsyncSession, async_scoped_session, async_sessionmaker
from sqlalchemy.orm import Mapper, Session, object_session, scoped_session, sessionmaker

from outboxd import errors, suggest
from outboxd.producer import counts
from outboxd.producer import default as default_producer
from outboxd.producer.blocking import at_once
from outboxd.producer.draft import NewMessage
from outboxd.producer.on_sqlalchemy import SqlalchemyTransaction

if TYPE_CHECKING:
    from sqlalchemy import Connection

    from outboxd.producer import Producer
    from outboxd.producer.batch import Batch

_SEEN, _SAVED = "outboxd_seen", "outboxd_saved"


@dataclass(frozen=True, slots=True)
class Producing:
    """
    What a mapped class says about its messages, in `__outbox__`.

    Attributes:
        category: Name of a configured category.
        shard: The attribute that is the shard identifier.
        object_identifier: The attribute that is the object identifier.
        payload: Makes a payload of an object; None: no payload.
        region: The attribute that is the region, or what makes it of an object, where the outbox shards by region.
        columns: Of updates, those of these attributes count, and those that move the object; none named: every one.
        outbox: Name of an outbox, where several would fit.

    An object is moved by a new value of the attributes for shard, object identifier and region: it is told of where it
    was and where it is.
    """

    category: str
    shard: str
    object_identifier: str = "id"
    payload: Callable[[Any], Any] | None = None
    region: str | Callable[[Any], str] | None = None
    columns: Sequence[str] = ()
    outbox: str | None = None

    @property
    def address(self) -> tuple[str, ...]:
        """The attributes that tell where an object's messages go."""
        return (self.shard, self.object_identifier, *([self.region] if isinstance(self.region, str) else []))


class _Seen(NamedTuple):
    """An object in a flush: who wrote its row, where it was before, and its message if it is gone by the end."""

    says: Producing
    connection: Connection
    target: object
    before: dict[str, Any]
    last: NewMessage | None


def produce(sessions: Any, producer: Producer | None = None) -> None:
    """
    Have sessions write messages from now on.

    Args:
        sessions: A `sessionmaker` or `async_sessionmaker`, a `scoped_session` or `async_scoped_session`, a class of
            `Session` (`Session` itself: every session of the program), or one session.
        producer: Which configuration; None: as for `outbox_context`, looked up at the first message.

    Raises:
        InvalidOutboxError: It is nothing of the kind.
    """
    target = _synchronous(sessions)
    event.listen(target, "before_flush", _begin)
    event.listen(target, "after_flush", functools.partial(_write, producer))
    event.listen(target, "after_commit", _count)
    event.listen(target, "after_transaction_end", _forget)


def _synchronous(sessions: Any) -> Any:
    """Find what has the events: those of an async session are of the one that it wraps."""
    if isinstance(sessions, AsyncSession):
        return sessions.sync_session
    if isinstance(sessions, async_sessionmaker):
        own = type("ProducingSession", (sessions.kw.get("sync_session_class", sessions.class_.sync_session_class),), {})
        sessions.configure(sync_session_class=own)
        return own
    if isinstance(sessions, async_scoped_session):
        return _synchronous(sessions.session_factory)
    if isinstance(sessions, (Session, sessionmaker, scoped_session)):
        return sessions
    if isinstance(sessions, type) and issubclass(sessions, Session):
        return sessions
    given = sessions.__name__ if isinstance(sessions, type) else f"a {type(sessions).__name__}"
    raise errors.InvalidOutboxError(f"produce takes no {given}: give it the sessionmaker or async_sessionmaker")


@event.listens_for(Mapper, "mapper_configured")
def _listen(mapper: Mapper[Any], class_: Any) -> None:
    """Listen to what becomes of the objects of a class that has `__outbox__`."""
    says = getattr(class_, "__outbox__", None)
    if says is None:
        return
    if not isinstance(says, Producing):
        raise errors.InvalidOutboxError(f"{class_.__qualname__}.__outbox__ is no Producing")
    if isinstance(says.columns, str):
        raise errors.InvalidOutboxError(f"{class_.__qualname__}.__outbox__: columns is a text, not a list of names")
    for name in (*says.address, *says.columns):
        known = mapper.column_attrs.keys() if name in says.address else mapper.attrs.keys()
        if name not in known:
            nearest = suggest.nearest(name, known)
            raise errors.InvalidOutboxError(f"{class_.__qualname__}.__outbox__: there is no column {name}{nearest}")
    for name in says.address:
        getattr(class_, name).impl.active_history = True  # an attribute that has expired would not tell its old value
    event.listen(mapper, "before_insert", functools.partial(_on_insert, says))
    event.listen(mapper, "before_update", functools.partial(_on_update, says))
    event.listen(mapper, "before_delete", functools.partial(_on_delete, says))


def _on_insert(says: Producing, mapper: Mapper[Any], connection: Connection, target: Any) -> None:
    session = object_session(target)
    replaced = None if session is None else session.identity_map.get(mapper.identity_key_from_instance(target))
    if replaced is not None:  # deleted in the same flush: the unit of work makes one UPDATE of both, and no more events
        _on_delete(says, mapper, connection, replaced)
    _note(target, _Seen(says, connection, target, {}, None))


def _on_update(says: Producing, _mapper: object, connection: Connection, target: Any) -> None:
    before = _before(says, target)
    session = object_session(target)
    if session is None or not (before or _counts(session, says, target)):
        return
    _note(target, _Seen(says, connection, target, before, None))


def _on_delete(says: Producing, _mapper: object, connection: Connection, target: Any) -> None:
    before = _before(says, target)  # set before the deletion, and never written
    _note(target, _Seen(says, connection, target, before, _message(says, target)))


def _note(target: object, seen: _Seen) -> None:
    session = object_session(target)
    if session is not None and _SEEN in session.info:
        session.info[_SEEN].append(seen)


def _before(says: Producing, target: object) -> dict[str, Any]:
    """Return what the attributes that tell where messages go were before, of those that have changed."""
    attributes = inspect(target).attrs
    histories = {name: attributes[name].history for name in says.address}
    return {name: history.deleted[0] for name, history in histories.items() if history.deleted}


def _counts(session: Session, says: Producing, target: object) -> bool:
    """Whether a row that may be updated changes in what counts."""
    if not says.columns:
        return session.is_modified(target, include_collections=False)
    attributes = inspect(target).attrs
    return any(attributes[name].history.has_changes() for name in says.columns)


def _begin(session: Session, _context: object, _instances: object) -> None:
    session.info[_SEEN] = []


def _write(producer: Producer | None, session: Session, _context: object) -> None:
    by_connection: dict[Connection, list[NewMessage]] = {}
    for seen in session.info.pop(_SEEN, ()):
        by_connection.setdefault(seen.connection, []).extend(_messages(seen))
    for connection, messages in by_connection.items():
        if messages:
            transaction = SqlalchemyTransaction(connection)
            _, batches = at_once((producer or default_producer()).write(transaction, messages, flush=False))
            session.info.setdefault(_SAVED, []).extend(batches)


def _messages(seen: _Seen) -> list[NewMessage]:
    """Return the message about an object where it is, and the one where it was if that is elsewhere."""
    message = seen.last or _message(seen.says, seen.target)
    was = _message(seen.says, seen.target, seen.before) if seen.before else message
    told = [message] if was == message else [was, message]
    # Where it had no shard there was nobody to be told; where it has none, that is an error, unless it is gone.
    return [each for each in told if each.shard_identifier is not None or (each is message and seen.last is None)]


def _message(says: Producing, target: Any, before: dict[str, Any] | None = None) -> NewMessage:
    def value(name: str) -> Any:
        return before[name] if before and name in before else getattr(target, name)

    region = value(says.region) if isinstance(says.region, str) else says.region and says.region(target)
    return NewMessage(
        category=says.category,
        shard_identifier=value(says.shard),
        object_identifier=value(says.object_identifier),
        payload=None if says.payload is None else says.payload(target),
        region_name=region,
        outbox=says.outbox,
    )


def _count(session: Session) -> None:
    batches: list[Batch] = session.info.pop(_SAVED, [])
    for batch in batches:
        counts.save(batch.outbox.name, batch.categories)


def _forget(session: Session, transaction: Any) -> None:
    if transaction.parent is None:  # what a savepoint takes back stays counted: a counter is no ledger
        session.info.pop(_SAVED, None)
