"""
What one drainer works on: a claimed shard's messages, coalesced into groups.

A turn ends when nothing is left, or after its bounds in rows and seconds, so that a busy shard cannot keep the
others waiting.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd.model import KnownFailure, Message, datetime_of

if TYPE_CHECKING:
    import asyncpg

    from outboxd.claims import Claim
    from outboxd.outbox import Outbox
    from outboxd.registry import Category, Registry

# Columns of read_messages. By number: a record's name look-up costs twice as much, and this is once a row.
SHARD_NUMBER, ID, CATEGORY, OBJECT, PAYLOAD, LARGE, HEADERS, SCHEDULED_FOR, DATE_ADDED = range(9)


class Group:
    """
    Messages that become one delivery.

    They are of equal shard, category and object, or a single one where the category does not coalesce. `ids` are
    exactly the rows that were read (I2); `oldest` bears the schedule, `newest` the content.
    """

    __slots__ = ("ids", "known", "newest", "oldest")

    def __init__(self, row: asyncpg.Record) -> None:
        self.ids: list[int] = [row[ID]]
        self.oldest = row
        self.newest = row
        self.known: KnownFailure | None = None

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
            groups[key] = Group(row)
        else:
            group.ids.append(row[ID])
            group.newest = row
    return list(groups.values())


class Turn:
    """
    One turn of one claimed shard.

    `unfinished` means that the shard may hold more than was read or delivered; `unreadable` that a delivery could not
    even be tried; `interrupted` that the turn did not come to its own end; `postponed` that it should come again soon;
    `retry_in_s` when a failure of this turn is tried again. `delivered` gathers groups until they are
    handed to the settler, `unhandled` counts those for which no receiver was called, `unsettled` the endings that are
    not committed; `weight` is what the turn holds in memory, as the reader measures it. The claim is released when the
    turn is over and nothing is unsettled.
    """

    __slots__ = (
        "claim",
        "committed",
        "deferrals",
        "delivered",
        "failed",
        "groups",
        "identifier",
        "interrupted",
        "over",
        "postponed",
        "region",
        "retry_in_s",
        "rows_retired",
        "scope",
        "unfinished",
        "unhandled",
        "unreadable",
        "unsettled",
        "weight",
    )

    def __init__(self, claim: Claim, outbox: Outbox, groups: list[Group], *, weight: int, unfinished: bool) -> None:
        self.claim = claim
        self.scope = outbox.scope_of(claim.shard)
        self.identifier = outbox.identifier_of(claim.shard)
        self.region = outbox.region_of(claim.shard)
        self.delivered: list[Group] = []
        self.groups = groups
        self.weight = weight
        self.unfinished = unfinished
        self.failed = False
        self.unreadable = False
        self.interrupted = False
        self.postponed = False
        self.deferrals = 0
        self.retry_in_s: float | None = None
        self.committed: asyncio.Event | None = None
        self.unhandled = 0
        self.over = False
        self.unsettled = 0
        self.rows_retired = 0


def message_of(
    group: Group, turn: Turn, outbox: str, category: Category, registry: Registry, payload: str | None
) -> Message:
    """Build what the receiver gets; *payload* is the newest message's, as JSON text."""
    newest = group.newest
    headers = newest[HEADERS]
    return Message(
        id=newest[ID],
        outbox=outbox,
        shard_scope=turn.scope,
        shard_identifier=turn.identifier,
        region_name=turn.region,
        category=category.value,
        category_name=category.name,
        scope_name=registry.scopes.get(turn.scope) or str(turn.scope),
        object_identifier=newest[OBJECT],
        payload=None if payload is None else _parsed(payload),
        headers=None if headers is None else _parsed(headers),
        date_added=datetime_of(newest[DATE_ADDED]),
        scheduled_for=datetime_of(newest[SCHEDULED_FOR]),
        attempt=group.attempt,
        coalesced=len(group.ids),
    )


def _parsed(text: str) -> Any:
    """Parse JSON; jsonb holds numbers beyond a float's range, which only the slower standard parser takes."""
    try:
        return msgspec.json.decode(text)
    except msgspec.ValidationError:
        import json

        return json.loads(text)
