"""
What one drainer works on: a claimed shard's messages, coalesced into groups.

A turn ends when nothing is left, or after its bounds in rows and seconds, so that a busy shard cannot keep the
others waiting.
"""

from __future__ import annotations

import asyncio
import functools
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd.model import KnownFailure, Message, datetime_of

if TYPE_CHECKING:
    import asyncpg

    from outboxd.claims import Claim
    from outboxd.registry import Category, Registry

_schedule_of = functools.lru_cache(maxsize=256)(datetime_of)
"""Hardly any two messages are of the same time, but most are scheduled for the one that says `at once`."""

# Columns of read_messages. By number: a record's name look-up costs twice as much, and this is once a row.
SHARD_NUMBER, ID, CATEGORY, OBJECT, PAYLOAD, LARGE, HEADERS, SCHEDULED_FOR, DATE_ADDED = range(9)


class Group(msgspec.Struct):
    """
    Messages that become one delivery.

    They are of equal shard, category and object, or a single one where the category does not coalesce. `ids` are
    exactly the rows that were read (I2); `oldest` bears the schedule, `newest` the content. `is_counted`: a failure was
    written ahead of the delivery (prepared mode). `headers` of all of them, as JSON texts, where deliveries are traced.
    """

    ids: list[int]
    oldest: Any
    newest: Any
    known: KnownFailure | None = None
    is_counted: bool = False
    headers: list[str] = []

    @property
    def subject(self) -> tuple[int, Any]:
        """Category and object."""
        return self.newest[CATEGORY], self.newest[OBJECT]

    @property
    def attempt(self) -> int:
        """The number of the next attempt: 1 on the first try."""
        return 1 if self.known is None else self.known.attempts + 1


def coalesce(rows: Iterable[asyncpg.Record], apart: frozenset[int]) -> list[Group]:
    """
    Group messages by category and object.

    Args:
        rows: Messages of one shard, by id.
        apart: Categories whose messages are delivered one by one.

    Returns:
        The groups in the order of their lowest id (I4).
    """
    groups: dict[tuple[Any, ...], Group] = {}
    for row in rows:
        # An object's own key can never equal the key of a message that stands apart: only that one has three parts.
        category = row[CATEGORY]
        key = (category, row[OBJECT], row[ID]) if category in apart else (category, row[OBJECT])
        group = groups.get(key)
        if group is None:
            groups[key] = Group([row[ID]], row, row)
        else:
            group.ids.append(row[ID])
            group.newest = row
    return list(groups.values())


def keep_headers(groups: Iterable[Group], rows: Iterable[asyncpg.Record]) -> None:
    """Remember the headers of every message, for the links of traces."""
    headers = {row[ID]: row[HEADERS] for row in rows if row[HEADERS] is not None}
    for group in groups if headers else ():
        group.headers = [headers[id_] for id_ in group.ids if id_ in headers]


class Turn(msgspec.Struct, eq=False):
    """
    One turn of one claimed shard.

    Attributes:
        claim: Released when the turn is over and nothing is unsettled.
        scope, identifier, region: What identifies the shard.
        groups: What is to be delivered, in order.
        weight: What the turn holds in memory, as the reader measures it.
        unfinished: The shard may hold more than was read or delivered.
        failed: A delivery failed.
        unreadable: A delivery could not even be tried.
        interrupted: The turn did not come to its own end.
        postponed: It should come again soon.
        deferrals: How often its settlement was set aside.
        retry_in_s: When a failure of this turn is tried again.
        committed: Set, where it is awaited, when nothing is unsettled any more.
        delivered: Groups that are not handed to the settler yet.
        unhandled: Categories for which no receiver was called.
        rows: What is at hand for model receivers: by source table and category, then by object.
        slice_at: When the slice of work under way began, monotonic seconds.
        over: Nothing more will be handed to the settler.
        unsettled: Endings that are not committed.
        rows_retired: Messages that were deleted.
    """

    claim: Claim
    scope: int
    identifier: Any
    region: str | None
    groups: list[Group]
    weight: int
    unfinished: bool
    failed: bool = False
    unreadable: bool = False
    interrupted: bool = False
    postponed: bool = False
    deferrals: int = 0
    retry_in_s: float | None = None
    committed: asyncio.Event | None = None
    delivered: list[Group] = []
    unhandled: frozenset[int] = frozenset()
    rows: dict[tuple[str, str], dict[Any, Any]] = {}
    slice_at: float = 0.0
    over: bool = False
    unsettled: int = 0
    rows_retired: int = 0


def message_of(
    group: Group, turn: Turn, outbox: str, category: Category, registry: Registry, payload: str | None
) -> Message:
    """Build what the receiver gets; *payload* is the newest message's, as JSON text."""
    _, message_id, _, object_identifier, _, _, headers, scheduled_for, date_added = group.newest
    return Message(  # by position: by keyword it would take twice as long
        message_id,
        outbox,
        turn.scope,
        turn.identifier,
        turn.region,
        category.value,
        category.name,
        registry.scopes.get(turn.scope) or str(turn.scope),
        object_identifier,
        None if payload is None else _parsed(payload),
        None if headers is None else _parsed(headers),
        datetime_of(date_added),
        _schedule_of(scheduled_for),
        group.attempt,
        len(group.ids),
    )


def _parsed(text: str) -> Any:
    """Parse JSON; jsonb holds numbers beyond a float's range, which only the slower standard parser takes."""
    try:
        return msgspec.json.decode(text)
    except msgspec.ValidationError:
        import json

        return json.loads(text)
