"""
Why a shard does not move: from facts to reasons, the one that matters first. Pure.

A reason blocks when the shard cannot move before it is gone; the others are worth knowing. Rules stand in the order in
which somebody would have to mend things: a shard that is paused gains nothing from a daemon.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Literal

import msgspec

from outboxd.command_line import lifting, line
from outboxd.display import counted, duration
from outboxd.model import DIED_ERROR
from outboxd.shard_case import Case, failure_lines, moment_of, object_of, some, waiting
from outboxd.shard_facts import QUIET_REMEDY
from outboxd.sql import literal

if TYPE_CHECKING:
    from outboxd.shard_case import Known
    from outboxd.shard_facts import CategoryCount, Facts, Failure, Switch, Transaction

Code = Literal[
    "draining", "uncommitted", "empty", "paused", "no_daemon", "unprivileged", "hanging", "unknown_category",
    "no_receiver", "behind", "backoff", "failed", "not_due", "due",
]  # fmt: skip
OPEN_S_MAX = 10.0
FORGOTTEN_S = 300.0


class Reason(msgspec.Struct, frozen=True):
    """One reason; `remedy` has commands, or sentences that say what to do."""

    code: Code
    text: str
    details: list[str] = []
    remedy: list[str] = []
    blocks: bool = True


def reasons(facts: Facts, known: Known) -> list[Reason]:
    """Return the reasons, at least one: those that block first, each kind in the order of the rules."""
    case = Case(facts, known)
    found = [reason for rule in RULES for reason in rule(case)]
    if not any(reason.blocks for reason in found):
        found.append(_due(case))
    return sorted(found, key=lambda reason: not reason.blocks)


def _draining(case: Case) -> Iterable[Reason]:
    holder = case.facts.claimed_by
    if holder is None:
        return
    if holder.pid is None:
        who = (
            f"a session that is no daemon: backend {holder.backend_pid} ({holder.application_name or 'without a name'})"
        )
        details = []
    else:
        who = f"the {'daemon' if holder.is_daemon else '`outboxd drain`'} with pid {holder.pid} on {holder.host}"
        details = [f"running since {moment_of(case.facts, holder.started_at)}, version {holder.version}"]
        details.append(f"its claim session is backend {holder.backend_pid}")
    remedy = ["Wait for the delivery; one that hangs ends after receiver_timeout_s.", case.command("explain")]
    if holder.is_quiet:
        details.append(_quiet(holder.quiet_s))
        remedy = [QUIET_REMEDY]
    yield Reason("draining", f"it is being drained now, by {who}", details, remedy)


def _empty(case: Case) -> Iterable[Reason]:
    facts = case.facts
    if facts.messages:
        return
    end = "or is not committed yet" if facts.transactions else "or never committed"
    text = f"no message waits in this shard: all is delivered, or was buried, {end}"
    details = [f"{counted(len(facts.failures), 'failed object')} still on record"] if facts.failures else []
    place = {"outbox": facts.outbox, "region": facts.region, "scope": facts.scope, "shard": facts.shard}
    yield Reason("empty", text, details, [line("dead-letters list", **place)])


def _uncommitted(case: Case) -> Iterable[Reason]:
    """
    Transactions whose messages cannot be seen yet.

    Of which shard such a message is, nobody can tell, and a busy table always has some: the answer they are only for an
    empty shard, and when one has been open for minutes.
    """
    facts = case.facts
    open_ = [each for each in facts.transactions if not facts.messages or _is_old(facts, each)]
    if not open_:
        return
    one = len(open_) == 1
    text = (
        f"{counted(len(open_), 'open transaction')} {'has' if one else 'have'} written to the table: what"
        f" {'it' if one else 'they'} wrote, perhaps to this shard, cannot be seen before"
        f" {'it commits' if one else 'they commit'}"
    )
    details = [_transaction(facts, each) for each in open_]
    if not facts.sees_activity:
        details.append("this role does not see what other roles do (it lacks pg_read_all_stats): ages may be missing")
    remedy = ["Let it commit. If it is forgotten, end it, which loses what it wrote:", *_enders(open_)]
    is_answer = not facts.messages and any(each.since and _age_s(facts, each) >= FORGOTTEN_S for each in open_)
    yield Reason("uncommitted", text, details, remedy, blocks=is_answer)


def _is_old(facts: Facts, each: Transaction) -> bool:
    """Whether it is worth a word where messages can be seen: producers commit all the time."""
    return each.since is None or _age_s(facts, each) >= OPEN_S_MAX


def _age_s(facts: Facts, each: Transaction) -> float:
    return -facts.seconds_until(each.since)


def _transaction(facts: Facts, each: Transaction) -> str:
    age = f"open for {duration(-facts.seconds_until(each.since))}" if each.since else "age not visible"
    if each.prepared is not None:
        return f"prepared transaction {each.prepared}, {age}"
    named = [f"backend {each.pid} ({each.application_name or 'without a name'})", f"role {each.role}", each.state or ""]
    return ", ".join([part for part in named if part] + [age])


def _enders(transactions: list[Transaction]) -> list[str]:
    return [
        f"SELECT pg_terminate_backend({each.pid});"
        if each.prepared is None
        else f"ROLLBACK PREPARED {literal(each.prepared)};"
        for each in transactions
    ]


def _paused(case: Case) -> Iterable[Reason]:
    facts = case.facts
    if not facts.switches:
        return
    whole = any(switch.covers != "category" for switch in facts.switches)
    off = case.off()
    left = [count for count in facts.categories if count.category not in off]
    blocks = facts.messages > 0 and (whole or not left)
    first, *_ = sorted(facts.switches, key=lambda switch: switch.covers == "category")
    messages = sum(count.messages for count in facts.categories if count.category in off)
    part = "" if whole or blocks else f" ({some(facts, messages)} of {some(facts, facts.messages)})"
    details = [_switch(facts, switch) for switch in facts.switches]
    commands = list(dict.fromkeys(_resume(facts, switch) for switch in facts.switches))
    yield Reason("paused", f"{_covered(facts, first)} is switched off{part}", details, commands, blocks=blocks)


def _covered(facts: Facts, switch: Switch) -> str:
    match switch.covers:
        case "outbox":
            return f"outbox {facts.outbox}"
        case "category":
            return f"category {switch.category_name}"
        case _:
            return "the shard"


def _switch(facts: Facts, switch: Switch) -> str:
    what = f"pause {switch.pause}" if switch.kind == "pause" else f"option {switch.option}"
    until = f"until {moment_of(facts, switch.expires_at)}" if switch.expires_at else "without end"
    why = switch.reason or "no reason was given"
    return f"{_covered(facts, switch)}: {what} by {switch.author or 'nobody named'}, {until}: {why}"


def _resume(facts: Facts, switch: Switch) -> str:
    if switch.option is None:
        return line("resume", switch.pause)
    off = {"outbox": facts.outbox, "category": switch.category_name, "shard": facts.shard}[switch.covers]
    return lifting(
        switch.option,
        switch.value or "[]",
        str(off),
        now=facts.asked_at,
        reason=switch.reason,
        expires_at=switch.expires_at,
    )


def _no_daemon(case: Case) -> Iterable[Reason]:
    facts = case.facts
    if case.living() or facts.claimed_by is not None:
        return
    details = [
        f"the daemon with pid {each.pid} on {each.host} has died"
        + (f" at {moment_of(facts, each.died_at)}" if each.died_at else ", and nobody has noticed yet")
        for each in facts.daemons[:3]
    ]
    start = "Start `outboxd`, or wait for the next `outboxd --once`"
    remedy = [f"{start}; or drain this shard here:", case.command("drain")] if _drains(case) else [f"{start}."]
    text = f"no daemon is running that drains outbox {facts.outbox}"
    yield Reason("no_daemon", text, details, remedy, blocks=facts.messages > 0)


def _unprivileged(case: Case) -> Iterable[Reason]:
    """Nobody who could drain it may: it is not delivered, or delivered and not deleted."""
    facts = case.facts
    living = case.living()
    if living and all(each.may_drain is False for each in living):
        roles = ", ".join(dict.fromkeys(str(each.role) for each in living))
        text = f"role {roles}, as which the daemon works, lacks privileges on the table of outbox {facts.outbox}"
        remedy = ["Give it what it lacks; this names it:", "outboxd doctor"]
        yield Reason("unprivileged", text, [], remedy, blocks=facts.messages > 0)


def _hanging(case: Case) -> Iterable[Reason]:
    """Every daemon that could drain it has stopped to turn; of a shard that one of them holds, `_draining` tells."""
    facts = case.facts
    living = case.living()
    if not living or facts.claimed_by is not None or not all(each.is_quiet for each in living):
        return
    named = [f"the daemon with pid {each.pid} on {each.host}: {_quiet(each.quiet_s)}" for each in living[:3]]
    remedy = [f"{QUIET_REMEDY} Or drain this shard here:", case.command("drain")] if _drains(case) else [QUIET_REMEDY]
    text = (
        f"{'the daemon' if len(living) == 1 else 'every daemon'} that drains outbox {facts.outbox} hangs, or is stopped"
    )
    yield Reason("hanging", text, named, remedy, blocks=facts.messages > 0)


def _quiet(quiet_s: float | None) -> str:
    return f"it has not touched its claim session for {duration(quiet_s or 0.0)}"


def _drains(case: Case) -> bool:
    """Whether `outboxd drain` would deliver something now."""
    hindrances = (_paused, _unknown_category, _no_receiver)
    return (
        case.facts.messages > 0
        and not case.known.receivers_error
        and not any(reason.blocks for rule in hindrances for reason in rule(case))
    )


def _unknown_category(case: Case) -> Iterable[Reason]:
    unknown = [c for c in case.facts.categories if c.category not in case.known.categories]
    if unknown:
        named = ", ".join(str(each.category) for each in unknown)
        text = f"category {named} is not in the configuration: its messages fail, and stay until somebody knows it"
        remedy = [f"Add [categories.<NAME>] with value = {unknown[0].category}, or deploy the daemon that knows it."]
        yield Reason("unknown_category", text, _counts(case.facts, unknown), remedy, blocks=_in_front(case, unknown))


def _no_receiver(case: Case) -> Iterable[Reason]:
    known = case.known
    bare = [
        count
        for count in case.facts.categories
        if count.category in known.categories and not known.categories[count.category].is_received
    ]
    if bare and not known.discards_unhandled:
        text = f"no receiver is registered for category {', '.join(each.category_name for each in bare)}"
        remedy = ['Add a @receiver to one of receivers.modules; or set on_unhandled = "discard" on the outbox.']
        yield Reason("no_receiver", text, _counts(case.facts, bare), remedy, blocks=_in_front(case, bare))
    if known.receivers_error and case.facts.messages:
        text = "the receivers could not be looked at from here: whether all categories have one is not known"
        yield Reason("no_receiver", text, [known.receivers_error], ["outboxd check"], blocks=False)


def _in_front(case: Case, counts: list[CategoryCount]) -> bool:
    """Whether one of these categories holds up the shard: it has failed, or is the first that will be tried."""
    categories = {count.category for count in counts}
    failing = case.blocking()
    return case.facts.first_category in categories or (failing is not None and failing.category in categories)


def _counts(facts: Facts, counts: list[CategoryCount]) -> list[str]:
    return [f"category {each.category_name}: {some(facts, each.messages)}, {each.due} due" for each in counts]


def _behind(case: Case) -> Iterable[Reason]:
    """Messages that are due, but wait: a failing shard is not woken by them yet."""
    facts, failing, due = case.facts, case.blocking(), case.due()
    if failing is None or not due or case.held_s(failing) <= 0:
        return
    text = (
        f"{some(facts, due)} {'is due but waits' if due == 1 else 'are due but wait'} behind message"
        f" {failing.message_id} ({object_of(failing)}), which fails"
    )
    died, held = failing.last_error == DIED_ERROR, duration(case.held_s(failing))
    wakes = "after a death, no new message has" if died else "a new message has"
    detail = f"{wakes} a failing shard tried again{':' if died else ', but'} not before {held} from now"
    yield Reason("behind", text, [detail, *failure_lines(facts, failing)], _about_failure(case, failing))


def _backoff(case: Case) -> Iterable[Reason]:
    facts, failing = case.facts, case.failing()
    if not failing:
        return
    first = case.blocking() or failing[0]
    text = (
        f"in backoff after {counted(first.attempts, 'attempt')}: {object_of(first)} fails;"
        f" next try {moment_of(facts, first.next_attempt_at)}"
    )
    details = failure_lines(facts, first)
    if case.blocking() is not None and facts.messages > 1:
        details.append(f"{some(facts, facts.messages - 1)} {'waits' if facts.messages == 2 else 'wait'} behind it")
    others = [f"also failing: {object_of(f)}, {counted(f.attempts, 'attempt')}" for f in failing if f is not first]
    yield Reason("backoff", text, details + others, _about_failure(case, first), blocks=not case.due())


def _failed(case: Case) -> Iterable[Reason]:
    """Tell what failed before, and is tried again as soon as nothing else is in the way."""
    again = case.failing(due=True)
    if again:
        first, *others = again
        text = f"{object_of(first)} has failed {counted(first.attempts, 'time')}, and is due for its next try"
        details = failure_lines(case.facts, first)
        details += [f"so is {object_of(f)}, after {counted(f.attempts, 'attempt')}" for f in others]
        yield Reason("failed", text, details, blocks=False)


def _about_failure(case: Case, failing: Failure) -> list[str]:
    return [
        "Mend the receiver, then have the shard tried at once; or give the message up:",
        case.command("retry"),
        line("bury", failing.message_id, reason="WHY", outbox=case.facts.outbox, region=case.facts.region),
    ]


def _not_due(case: Case) -> Iterable[Reason]:
    facts, off = case.facts, case.off()
    if case.due() or facts.retries(due=False) or all(count.category in off for count in facts.categories):
        return
    text = f"nothing{' else' if facts.due else ''} is due: the next message is {moment_of(facts, facts.next_due_at)}"
    yield Reason("not_due", text, [waiting(facts)], ["Wait; or have it delivered now:", case.command("retry")])


def _due(case: Case) -> Reason:
    facts, due = case.facts, case.due()
    text = f"{some(facts, due)} {'is' if due == 1 else 'are'} due, and nothing is in the way: wait a moment"
    remedy = ["If it still waits in a minute, the daemon is behind or stuck:", "outboxd doctor"]
    return Reason("due", text, [waiting(facts)], remedy)


Rule = Callable[[Case], Iterable[Reason]]
RULES: tuple[Rule, ...] = (
    _unprivileged, _draining, _uncommitted, _empty, _paused, _no_daemon, _hanging, _unknown_category,
    _no_receiver, _behind, _backoff, _failed, _not_due,
)  # fmt: skip
