"""What is known of one shard: the row of `explain.sql`, typed. Times are ISO 8601 in UTC, or `infinity`."""

from __future__ import annotations

import math
from typing import Literal

import msgspec

from outboxd.display import seconds_between

QUIET_S_MAX = 15.0
"""A daemon that has not touched its claim session for longer hangs, or is stopped: it looks at it every few seconds."""
QUIET_REMEDY = "Look at its log for loop.blocked and claims.lost; restart it if it stays so."


class CategoryCount(msgspec.Struct, frozen=True):
    """Messages of one category in the shard."""

    category: int
    category_name: str
    messages: int
    due: int


class Failure(msgspec.Struct, frozen=True):
    """A row of `outboxd.failure`; `next_attempt_at` is None when its first message is gone, `due` of its object."""

    category: int
    category_name: str
    object_identifier: str
    attempts: int
    last_error: str
    first_failed_at: str
    last_failed_at: str
    message_id: int
    next_attempt_at: str | None
    due: int = 0


class Switch(msgspec.Struct, frozen=True):
    """A pause or an option that covers the shard, a category in it, or its outbox; `value`: the option's list, JSON."""

    kind: Literal["pause", "option"]
    covers: Literal["outbox", "category", "shard"]
    category: int | None
    category_name: str | None
    pause: int | None
    option: str | None
    reason: str | None
    author: str | None
    since: str
    expires_at: str | None
    value: str | None = None


class Holder(msgspec.Struct, frozen=True):
    """Who has locked the shard: without `pid` somebody unknown, else a daemon, or an `outboxd drain`."""

    backend_pid: int | None
    application_name: str | None
    host: str | None
    pid: int | None
    version: str | None
    started_at: str | None
    is_daemon: bool | None = True
    quiet_s: float | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether it is a daemon that hangs: never said of somebody unknown."""
        return self.pid is not None and bool(self.is_daemon) and (self.quiet_s or 0.0) > QUIET_S_MAX


class Daemon(msgspec.Struct, frozen=True):
    """A row of `outboxd.worker`; without `backend_pid` nobody holds its lock: it is dead."""

    id: int
    host: str
    pid: int
    version: str
    silo_mode: str
    started_at: str
    died_at: str | None
    backend_pid: int | None
    quiet_s: float | None = None
    role: str | None = None
    may_drain: bool | None = None

    @property
    def is_quiet(self) -> bool:
        """Whether it hangs, as far as this role may see."""
        return (self.quiet_s or 0.0) > QUIET_S_MAX


class Transaction(msgspec.Struct, frozen=True):
    """Somebody who has written to the table and not committed; `since` is None where this role may not see it."""

    pid: int | None
    application_name: str | None
    role: str | None
    state: str | None
    since: str | None
    prepared: str | None


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """The row of `explain.sql`."""

    asked_at: str
    outbox: str
    region: str | None
    scope: str
    shard: str
    messages: int
    due: int
    is_at_least: bool
    oldest_added_at: str | None
    newest_added_at: str | None
    next_due_at: str | None
    first_id: int | None
    first_category: int | None
    categories: list[CategoryCount] = []
    failures: list[Failure] = []
    switches: list[Switch] = []
    claimed_by: Holder | None = None
    daemons: list[Daemon] = []
    transactions: list[Transaction] = []
    sees_activity: bool = True

    def seconds_until(self, time: str | None) -> float:
        """Tell it; infinite for `infinity` and what is beyond the calendar, negative when it is past."""
        return -math.inf if time is None else seconds_between(self.asked_at, time)

    def retries(self, *, due: bool) -> list[Failure]:
        """Return the failures whose next try has come (*due*), or has not."""
        known = [f for f in self.failures if f.next_attempt_at is not None]
        return [f for f in known if self.is_due(f.next_attempt_at) is due]

    def is_due(self, time: str | None) -> bool:
        """Whether that time has come."""
        return self.seconds_until(time) <= 0
