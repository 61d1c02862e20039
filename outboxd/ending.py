"""How deliveries end: what drainers hand to the settler, and what that writes of a failure."""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING

import msgspec

from outboxd.model import Instant, Outcome  # noqa: TC001  msgspec reads these annotations
from outboxd.outbox import Failure
from outboxd.turn import CATEGORY, ID, OBJECT, SCHEDULED_FOR, Group, Turn

if TYPE_CHECKING:
    from outboxd.outbox import ShardObject


class Prepared(msgspec.Struct, frozen=True):
    """A failure that was counted ahead of its delivery: where the group's messages were moved to, by which delay."""

    moved_to: Instant
    delay: dt.timedelta


class Delivered(msgspec.Struct, eq=False):
    """
    Groups of one turn and category that were delivered without a pause.

    Attributes:
        calls: Deliveries among them; 0 where no receiver was called.
        ids: The messages they stand for.
        row_count: How many these are.
        ended_at: When the last one had been delivered, by the database's clock.
        seconds: What they took together.
    """

    turn: Turn
    category: int
    groups: list[Group]
    calls: int
    ids: list[int]
    row_count: int
    ended_at: Instant
    seconds: float


class Ending(msgspec.Struct, eq=False):
    """
    How a delivery ended that needs more than a delete.

    `prepared` is set in prepared mode: what was written before the delivery.
    """

    turn: Turn
    group: Group
    outcome: Outcome
    prepared: Prepared | None

    @property
    def row_count(self) -> int:
        """How many messages these are."""
        return len(self.group.ids)

    @property
    def subject(self) -> ShardObject:
        """The object that was delivered, or not."""
        return subject_of(self.turn, self.group)


Entry = Delivered | Ending


def ids_of_object(turn: Turn, group: Group) -> list[int]:
    """All messages of an object that this turn has read; those that were delivered are gone, which does no harm."""
    return [i for other in turn.groups if other.subject == group.subject for i in other.ids]


def subject_of(turn: Turn, group: Group) -> ShardObject:
    """Name the object that a group is about."""
    return turn.claim.shard, group.newest[CATEGORY], group.newest[OBJECT]


def failure_of(
    turn: Turn, group: Group, error: str, delay: dt.timedelta, only_ids: list[int] | None, prepared: Prepared | None
) -> Failure:
    """Say what moves, and how far, after a failed delivery; or, in prepared mode, before it."""
    oldest = group.oldest
    return Failure(
        shard=turn.claim.shard,
        category=oldest[CATEGORY],
        object_identifier=oldest[OBJECT],
        message_id=oldest[ID],
        scheduled_for=oldest[SCHEDULED_FOR] if prepared is None else prepared.moved_to,
        delay=delay,
        error=error,
        only_ids=only_ids,
        is_counted=prepared is not None,
    )
