"""What the rules of `reasons` look at: the facts of a shard beside the configuration, and words for both. Pure."""

from __future__ import annotations

import math

import msgspec

from outboxd.command_line import line
from outboxd.display import counted, duration, moment
from outboxd.model import DIED_ERROR
from outboxd.shard_facts import Daemon, Facts, Failure  # noqa: TC001  msgspec reads them

ERROR_SHOWN_MAX = 300


class KnownCategory(msgspec.Struct, frozen=True):
    """A category of the configuration; `blocks`: a failure holds up the whole shard."""

    name: str
    blocks: bool = True
    is_received: bool = True


class Known(msgspec.Struct, frozen=True, kw_only=True):
    """
    What the configuration says.

    Attributes:
        receivers_error: Why the receivers could not be looked at; then every category counts as received.
    """

    categories: dict[int, KnownCategory]
    discards_unhandled: bool = False
    retry_on_new_message_s: float = 60.0
    receivers_error: str = ""


class Case(msgspec.Struct, frozen=True):
    """What every rule looks at."""

    facts: Facts
    known: Known

    def command(self, verb: str) -> str:
        """Write a command about this shard."""
        facts = self.facts
        return line(verb, facts.scope, facts.shard, outbox=facts.outbox, region=facts.region)

    def failing(self, *, due: bool = False) -> list[Failure]:
        """Return the failures whose next try has come (*due*) or not, without a delivery that was counted ahead."""
        is_claimed = self.facts.claimed_by is not None
        found = self.facts.retries(due=due)
        return [f for f in found if not (is_claimed and f.last_error == DIED_ERROR and f.attempts == 1)]

    def living(self) -> list[Daemon]:
        """Return the daemons that live, of those that drain the outbox."""
        return [each for each in self.facts.daemons if each.backend_pid]

    def blocking(self) -> Failure | None:
        """Return the failure that holds up the whole shard, if any."""
        return next((f for f in self.failing() if self._blocks(f)), None)

    def off(self) -> set[int | None]:
        """Return the categories that are switched off."""
        return {switch.category for switch in self.facts.switches if switch.covers == "category"}

    def due(self) -> int:
        """Count what is due and may be delivered: nothing of a category that is off, nor about a held object."""
        facts, off = self.facts, self.off()
        paused = sum(count.due for count in facts.categories if count.category in off)
        free = [f for f in self.failing() if not self._blocks(f) and f.category not in off]
        return facts.due - paused - sum(f.due for f in free if self.held_s(f) > 0)

    def held_s(self, failing: Failure) -> float:
        """Tell for how many seconds a new message does not have it tried again; after a death none does."""
        until_next = self.facts.seconds_until(failing.next_attempt_at)
        if failing.last_error == DIED_ERROR:
            return until_next
        return min(until_next, self.known.retry_on_new_message_s + self.facts.seconds_until(failing.last_failed_at))

    def _blocks(self, failing: Failure) -> bool:
        default = KnownCategory("")  # an unknown category blocks
        return self.known.categories.get(failing.category, default).blocks


def object_of(failing: Failure) -> str:
    """Name what fails: category and object."""
    is_named = failing.category_name != str(failing.category)
    return f"{'' if is_named else 'category '}{failing.category_name} object {failing.object_identifier}"


def failure_lines(facts: Facts, failing: Failure) -> list[str]:
    """Write its error, cut, and since when it fails."""
    error = " ".join(failing.last_error.split())
    shown = error if len(error) <= ERROR_SHOWN_MAX else f"{error[:ERROR_SHOWN_MAX]} …"
    return [
        shown or "the error has no text",
        f"message {failing.message_id} failed first {moment_of(facts, failing.first_failed_at)},"
        f" last {moment_of(facts, failing.last_failed_at)}",
    ]


def waiting(facts: Facts) -> str:
    """Say how much waits, and since when."""
    age_s = max(0.0, -facts.seconds_until(facts.oldest_added_at))
    return f"{some(facts, facts.messages)} in all{f', the oldest for {duration(age_s)}' if facts.messages else ''}"


def summary(facts: Facts) -> str:
    """Say in a line what is in the shard."""
    return f"{some(facts, facts.messages)}, {facts.due:,} due"


def some(facts: Facts, count: int) -> str:
    """Count messages, of which there may be more than were looked at."""
    least = "at least " if facts.is_at_least and count > 1 else ""
    return f"{least}{counted(count, 'message')}"


def moment_of(facts: Facts, time: str | None) -> str:
    """Write a time with how far away it is."""
    seconds = facts.seconds_until(time)
    if time is None or math.isinf(seconds):
        return "never" if seconds > 0 else "at no time known"
    away = f"in {duration(seconds)}" if seconds > 0 else f"{duration(-seconds)} ago"
    return f"{moment(time)} ({away})"
