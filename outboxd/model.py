"""The values that travel through the drain: pure data, no I/O."""

from __future__ import annotations

import datetime as dt
import uuid
from typing import Any

import msgspec

Identifier = int | str | uuid.UUID
"""A shard or object identifier: bigint, text or uuid, as the table's column has it."""


Instant = int
"""A point in time as PostgreSQL keeps it: microseconds since 2000-01-01 00:00 UTC."""

ALWAYS: Instant = -(2**63)
"""PostgreSQL's `-infinity`."""

_EPOCH = dt.datetime(2000, 1, 1, tzinfo=dt.UTC)
_UNIX_US = 946_684_800_000_000
"""The epoch in Unix time, microseconds."""
_EXACT_US_MAX = 2**32 * 1_000_000
"""Below this a float of seconds is less than half a microsecond from the truth (2106)."""


_from_unix = dt.datetime.fromtimestamp


def datetime_of(instant: Instant) -> dt.datetime:
    """Convert to an aware datetime; beyond the range of datetime (`infinity`) to its nearest end."""
    if 0 <= instant + _UNIX_US < _EXACT_US_MAX:  # 0.25 µs, where the exact sum takes 0.4: this is once a message
        return _from_unix((instant + _UNIX_US) / 1e6, dt.UTC)
    try:
        return _EPOCH + dt.timedelta(microseconds=instant)
    except OverflowError:
        return dt.datetime.max.replace(tzinfo=dt.UTC) if instant > 0 else dt.datetime.min.replace(tzinfo=dt.UTC)


class Message(msgspec.Struct, frozen=True):
    """
    What a receiver gets: the newest message of a coalesced group.

    The same `id` is the same content and a greater `id` is newer, so a receiver that remembers
    the greatest id it has applied to an object is idempotent.

    `attempt` is 1 on the first try. `coalesced` says how many rows this delivery stands for (>= 1).
    """

    id: int
    outbox: str
    shard_scope: int
    shard_identifier: Identifier
    region_name: str | None
    category: int
    category_name: str
    scope_name: str
    object_identifier: Identifier
    payload: Any
    headers: Any
    date_added: dt.datetime
    scheduled_for: dt.datetime
    attempt: int
    coalesced: int


class Unsent(msgspec.Struct, frozen=True):
    """What a failure is about whose message could not be given to a receiver; the fields are those of `Message`."""

    id: int
    outbox: str
    shard_identifier: Identifier
    region_name: str | None
    category_name: str
    scope_name: str
    object_identifier: Identifier
    attempt: int
    coalesced: int


ShardKey = tuple[Any, ...]
"""The values of the sharding columns, in the order of the configuration."""


class Candidate(msgspec.Struct, frozen=True):
    """
    A shard that may be drained.

    `due_at` is the due time that the find saw; a read under the lock checks that a message with it is still there.
    None: a turn of ours ended before the shard did, and any due message among those read will do. Messages up to
    `after_id` have just been seen, and were all held. `is_new`: it was found by a new message; or it goes on behind
    messages that were all written since a bounded run began.
    """

    shard: ShardKey
    lock_key: int
    due_at: Instant | None
    after_id: int | None = None
    is_new: bool = False


class NewMessages(msgspec.Struct, frozen=True):
    """
    What lies above the highest id seen, and what was missing below it.

    Attributes:
        candidates: Due shards.
        id_max: The new highest id.
        more: Whether there is more above it.
        due_in_s: When more is due.
        late_ids: What was missing and is there now.
        gaps: First ids and counts of what is missing between the highest id seen before and `id_max`, ascending.
        xmin, xid_next: Below the one every transaction had ended, and none from the other on had begun to write.
    """

    candidates: list[Candidate]
    id_max: int
    more: bool
    due_in_s: float | None
    late_ids: list[int]
    gaps: list[tuple[int, int]]
    xmin: int
    xid_next: int


DIED_ERROR = "the process died while this message was being delivered"
"""What the failure table says of a delivery from before it starts, in prepared mode, until it has ended (I9)."""


class KnownFailure(msgspec.Struct, frozen=True):
    """
    What the failure table says of one object.

    `message_id` is the lowest message of the group that failed; `due_in_s` <= 0 means that it is due, or gone.
    """

    category: int
    object_identifier: str
    attempts: int
    last_error: str
    due_in_s: float
    age_s: float
    message_id: int

    def held_for_s(self, retry_on_new_message_s: float) -> float:
        """
        Seconds for which a due message does not wake the object yet; 0 when it may be tried now.

        After a death nothing wakes it early: each try may be another one, and only its own messages have been moved, so
        that the rest of the shard is due and would do so at once.
        """
        if self.last_error == DIED_ERROR:
            return max(0.0, self.due_in_s)
        return max(0.0, min(self.due_in_s, retry_on_new_message_s - self.age_s))


class Failed(msgspec.Struct, frozen=True):
    """The ending of a delivery whose receiver raised; `exception` is what, where it was not asked for by us."""

    error: str
    retry_later_s: float | None = None
    exception: BaseException | None = None


class Buried(msgspec.Struct, frozen=True):
    """The ending of a delivery that is given up: the message is kept as a dead letter."""

    reason: str


class Untried(msgspec.Struct, frozen=True):
    """The ending of a delivery that was counted ahead, in prepared mode, and then not made, or cancelled by us."""


Outcome = Failed | Buried | Untried | None
"""How a delivery ended; None is success."""
