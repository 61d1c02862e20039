"""
SQLAlchemy: messages for mapped objects that have changed, written in the flush that writes the change.

    class Member(Base):
        __tablename__ = "member"
        __outbox__ = Producing("MEMBER_UPDATE", shard="organization_id")
        ...

    produce(Session)        # or a sessionmaker, or one session; `AsyncSession.sync_session_class`

What is inserted, updated or deleted through the session's unit of work gets a message in the same transaction.
Statements that pass by it (`session.execute(update(...))`, bulk operations, raw SQL) do not: `capture = true` sees
those, too.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from sqlalchemy import event, inspect
from sqlalchemy.orm import Mapper

from outboxd import errors
from outboxd.producer import counts
from outboxd.producer import default as default_producer
from outboxd.producer.blocking import at_once
from outboxd.producer.draft import NewMessage
from outboxd.producer.on_sqlalchemy import SqlalchemyTransaction

if TYPE_CHECKING:
    from sqlalchemy.orm import Session

    from outboxd.producer import Producer

_KEY = "outboxd"


@dataclass(frozen=True, slots=True)
class Producing:
    """
    What a mapped class says about its messages, in `__outbox__`.

    Attributes:
        category: Name of a configured category.
        shard: The attribute that is the shard identifier. When it changes, the old shard gets a message, too.
        object_identifier: The attribute that is the object identifier.
        payload: Makes a payload of an object; None: no payload.
        region: Makes the region of an object, where the outbox shards by region.
        columns: Of updates, only those of these attributes count; none named: every one.
        outbox: Name of an outbox, where several would fit.
    """

    category: str
    shard: str
    object_identifier: str = "id"
    payload: Callable[[Any], Any] | None = None
    region: Callable[[Any], str] | None = None
    columns: Sequence[str] = ()
    outbox: str | None = None


@event.listens_for(Mapper, "mapper_configured")
def _remember_old_shards(_mapper: object, class_: Any) -> None:
    """Load the value that a shard had before it is set: an attribute that has expired would not tell it."""
    says = getattr(class_, "__outbox__", None)
    if isinstance(says, Producing):
        getattr(class_, says.shard).impl.active_history = True


def produce(sessions: Any, producer: Producer | None = None) -> None:
    """
    Have sessions write messages from now on.

    Args:
        sessions: A `Session`, a class of it, or a `sessionmaker`.
        producer: Which configuration; None: as for `outbox_context`, looked up at the first message.
    """

    def write(session: Session, _context: object) -> None:
        messages = list(_messages(session))
        if messages:
            transaction = SqlalchemyTransaction(session.connection())
            _, batches = at_once((producer or default_producer()).write(transaction, messages, flush=False))
            session.info.setdefault(_KEY, []).extend(batches)

    event.listen(sessions, "after_flush", write)
    event.listen(sessions, "after_commit", _count)
    event.listen(sessions, "after_soft_rollback", _forget)


def _count(session: Session) -> None:
    for batch in session.info.pop(_KEY, []):
        counts.save(batch.outbox.name, batch.categories)


def _forget(session: Session, previous: Any) -> None:
    if previous.parent is None:  # what a savepoint takes back stays counted: a counter is no ledger
        session.info.pop(_KEY, None)


def _messages(session: Session) -> Iterator[NewMessage]:
    for target in (*session.new, *session.dirty, *session.deleted):
        says = getattr(target, "__outbox__", None)
        if says is None:
            continue
        if not isinstance(says, Producing):
            raise errors.InvalidOutboxError(f"{type(target).__qualname__}.__outbox__ is no Producing")
        if target not in session.dirty:
            yield _message(says, target, getattr(target, says.shard))
        elif _counts(session, says, target):
            yield from (_message(says, target, shard) for shard in _shards(says, target))


def _counts(session: Session, says: Producing, target: object) -> bool:
    """Whether an object that was touched has changed in what counts."""
    if not says.columns:
        return session.is_modified(target)
    attributes = inspect(target).attrs
    return any(attributes[name].history.has_changes() for name in (*says.columns, says.shard))


def _shards(says: Producing, target: object) -> list[Any]:
    """Return the shard of an object, and the one that it was in before."""
    history = inspect(target).attrs[says.shard].history
    before = [each for each in history.deleted or () if each is not None]
    return list(dict.fromkeys([*before, getattr(target, says.shard)]))


def _message(says: Producing, target: Any, shard: Any) -> NewMessage:
    return NewMessage(
        category=says.category,
        shard_identifier=shard,
        object_identifier=getattr(target, says.object_identifier),
        payload=None if says.payload is None else says.payload(target),
        region_name=None if says.region is None else says.region(target),
        outbox=says.outbox,
    )
