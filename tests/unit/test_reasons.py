"""Why a shard does not move: every reason from facts alone, which one comes first, and what it says to do."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from outboxd.model import DIED_ERROR
from outboxd.reasons import Reason, reasons
from outboxd.shard_case import Known, KnownCategory
from outboxd.shard_facts import CategoryCount, Daemon, Facts, Failure, Holder, Switch, Transaction

NOW = "2026-11-22T06:00:00+00:00"
PAST = "2026-11-22T05:59:00+00:00"
LONG_AGO = "2026-11-22T05:55:00+00:00"
SOON = "2026-11-22T06:01:00+00:00"
LATER = "2026-11-22T06:30:00+00:00"

MEMBER, TEAM, SKIPPING, STRANGE = 1, 2, 4, 999
KNOWN = Known(
    categories={
        MEMBER: KnownCategory("MEMBER"),
        TEAM: KnownCategory("TEAM"),
        SKIPPING: KnownCategory("SKIPPING", blocks=False),
    }
)
NAMES = {MEMBER: "MEMBER", TEAM: "TEAM", SKIPPING: "SKIPPING", STRANGE: "999"}
ALIVE = Daemon(7, "host-a", 4711, "1.0", "monolith", PAST, None, 900)
HANGING = msgspec.structs.replace(ALIVE, quiet_s=20.0)
UNPRIVILEGED = msgspec.structs.replace(ALIVE, role="daemon", may_drain=False)
HOLDER = Holder(900, "outboxd: claim", "host-a", 4711, "1.0", PAST)


def facts(*, due: int = 1, later: int = 0, category: int = MEMBER, **more: Any) -> Facts:
    """A shard with messages of one category, a daemon, and nothing in the way, unless more is said."""
    messages = due + later
    values: dict[str, Any] = {
        "asked_at": NOW,
        "outbox": "region",
        "region": None,
        "scope": "ORGANIZATION_SCOPE",
        "shard": "42",
        "messages": messages,
        "due": due,
        "is_at_least": False,
        "oldest_added_at": PAST if messages else None,
        "newest_added_at": PAST if messages else None,
        "next_due_at": LATER if later else None,
        "first_id": 1 if messages else None,
        "first_category": category if messages else None,
        "categories": [CategoryCount(category, NAMES[category], messages, due)] if messages else [],
        "daemons": [ALIVE],
    }
    return Facts(**(values | more))


def failure(category: int = MEMBER, **more: Any) -> Failure:
    values: dict[str, Any] = {
        "category": category,
        "category_name": NAMES[category],
        "object_identifier": "9",
        "attempts": 7,
        "last_error": "shop.accept raised ValueError: no",
        "first_failed_at": PAST,
        "last_failed_at": PAST,
        "message_id": 1,
        "next_attempt_at": LATER,
    }
    return Failure(**(values | more))


def switch(covers: str = "shard", category: int | None = None, **more: Any) -> Switch:
    values: dict[str, Any] = {
        "kind": "pause",
        "covers": covers,
        "category": category,
        "category_name": None if category is None else NAMES[category],
        "pause": 3,
        "option": None,
        "reason": "their endpoint is down",
        "author": "ada",
        "since": PAST,
        "expires_at": LATER,
    }
    return Switch(**(values | more))


def transaction(**more: Any) -> Transaction:
    values: dict[str, Any] = {"pid": 55, "application_name": "shop", "role": "app", "state": "idle in transaction"}
    return Transaction(**(values | {"since": PAST, "prepared": None} | more))


def codes(found: list[Reason]) -> list[str]:
    return [reason.code for reason in found]


def said(reason: Reason) -> str:
    return "\n".join([reason.text, *reason.details, *reason.remedy])


CASES = {
    "nothing there": (facts(due=0), ["empty"]),
    "nothing there, and paused": (facts(due=0, switches=[switch()]), ["empty", "paused"]),
    "nothing there, no daemon": (facts(due=0, daemons=[]), ["empty", "no_daemon"]),
    "not committed": (facts(due=0, transactions=[transaction()]), ["empty", "uncommitted"]),
    "not committed a moment ago": (facts(due=0, transactions=[transaction(since=NOW)]), ["empty", "uncommitted"]),
    "not committed for long": (
        facts(due=0, transactions=[transaction(since=NOW), transaction(since=LONG_AGO)]),
        ["uncommitted", "empty"],
    ),
    "not committed, nobody knows since when": (
        facts(due=0, transactions=[transaction(since=None)]),
        ["empty", "uncommitted"],
    ),
    "one forgot to commit long ago while something waits": (
        facts(transactions=[transaction(since=LONG_AGO)]),
        ["due", "uncommitted"],
    ),
    "not committed, paused, no daemon": (
        facts(due=0, transactions=[transaction()], switches=[switch()], daemons=[]),
        ["empty", "uncommitted", "paused", "no_daemon"],
    ),
    "producers commit while something waits": (facts(transactions=[transaction(since=NOW)]), ["due"]),
    "one forgot to commit while something waits": (facts(transactions=[transaction()]), ["due", "uncommitted"]),
    "due": (facts(), ["due"]),
    "claimed": (facts(claimed_by=HOLDER), ["draining"]),
    "claimed and failing": (facts(due=0, later=1, claimed_by=HOLDER, failures=[failure()]), ["draining", "backoff"]),
    "claimed by a daemon of another silo": (facts(claimed_by=HOLDER, daemons=[]), ["draining"]),
    "not due": (facts(due=0, later=2), ["not_due"]),
    "some due": (facts(later=2), ["due"]),
    "shard paused": (facts(switches=[switch()]), ["paused"]),
    "outbox paused": (facts(switches=[switch("outbox")]), ["paused"]),
    "its only category paused": (facts(switches=[switch("category", MEMBER)]), ["paused"]),
    "another category paused": (facts(switches=[switch("category", TEAM)]), ["due", "paused"]),
    "paused, and no daemon": (facts(switches=[switch()], daemons=[]), ["paused", "no_daemon"]),
    "paused and failing": (facts(due=0, later=1, switches=[switch()], failures=[failure()]), ["paused", "backoff"]),
    "no daemon": (facts(daemons=[]), ["no_daemon"]),
    "a dead daemon": (facts(daemons=[msgspec.structs.replace(ALIVE, backend_pid=None)]), ["no_daemon"]),
    "one dead and one alive": (facts(daemons=[msgspec.structs.replace(ALIVE, backend_pid=None), ALIVE]), ["due"]),
    "the only daemon hangs": (facts(daemons=[HANGING]), ["hanging"]),
    "the only daemon that lives hangs": (
        facts(daemons=[HANGING, msgspec.structs.replace(ALIVE, backend_pid=None)]),
        ["hanging"],
    ),
    "the only daemon may not drain": (facts(daemons=[UNPRIVILEGED]), ["unprivileged"]),
    "a daemon that may not delete has claimed it": (
        facts(daemons=[UNPRIVILEGED], claimed_by=HOLDER),
        ["unprivileged", "draining"],
    ),
    "one of two daemons may not drain": (facts(daemons=[UNPRIVILEGED, ALIVE]), ["due"]),
    "one of two daemons hangs": (facts(daemons=[HANGING, ALIVE]), ["due"]),
    "nothing there, the only daemon hangs": (facts(due=0, daemons=[HANGING]), ["empty", "hanging"]),
    "the only daemon hangs, paused": (facts(daemons=[HANGING], switches=[switch()]), ["paused", "hanging"]),
    "claimed by a daemon that hangs": (
        facts(daemons=[HANGING], claimed_by=msgspec.structs.replace(HOLDER, quiet_s=20.0)),
        ["draining"],
    ),
    "a daemon that may not be seen": (facts(daemons=[msgspec.structs.replace(ALIVE, quiet_s=None)]), ["due"]),
    "no daemon and failing": (facts(due=0, later=1, daemons=[], failures=[failure()]), ["no_daemon", "backoff"]),
    "in backoff": (facts(due=0, later=1, failures=[failure()]), ["backoff"]),
    "behind a failing one": (facts(later=1, failures=[failure(last_failed_at=NOW)]), ["behind", "backoff"]),
    "woken by a new message": (facts(later=1, failures=[failure()]), ["due", "backoff"]),
    "behind one that died long ago": (facts(later=1, failures=[failure(last_error=DIED_ERROR)]), ["behind", "backoff"]),
    "beside a failing object": (facts(later=1, category=SKIPPING, failures=[failure(SKIPPING)]), ["due", "backoff"]),
    "only a failing object": (facts(due=0, later=1, category=SKIPPING, failures=[failure(SKIPPING)]), ["backoff"]),
    "an object held, with a new message": (
        facts(later=1, category=SKIPPING, failures=[failure(SKIPPING, due=1, last_failed_at=NOW)]),
        ["backoff"],
    ),
    "an object woken by a new message": (
        facts(later=1, category=SKIPPING, failures=[failure(SKIPPING, due=1)]),
        ["due", "backoff"],
    ),
    "a delivery under way, counted ahead": (
        facts(due=0, later=1, claimed_by=HOLDER, failures=[failure(last_error=DIED_ERROR, attempts=1)]),
        ["draining"],
    ),
    "one that died at its first try": (
        facts(due=0, later=1, failures=[failure(last_error=DIED_ERROR, attempts=1)]),
        ["backoff"],
    ),
    "failed, and due again": (facts(failures=[failure(next_attempt_at=PAST)]), ["due", "failed"]),
    "failed, due again, and paused": (
        facts(switches=[switch()], failures=[failure(next_attempt_at=PAST)]),
        ["paused", "failed"],
    ),
    "failed, due again, and tried now": (
        facts(claimed_by=HOLDER, failures=[failure(next_attempt_at=PAST, last_error=DIED_ERROR, attempts=1)]),
        ["draining"],
    ),
    "one fails, one is due again": (
        facts(later=1, category=SKIPPING, failures=[failure(SKIPPING), failure(SKIPPING, next_attempt_at=PAST)]),
        ["due", "backoff", "failed"],
    ),
    "failed, and its message is gone": (facts(failures=[failure(next_attempt_at=None)]), ["due"]),
    "failed, gone, the rest not due": (facts(due=0, later=1, failures=[failure(next_attempt_at=None)]), ["not_due"]),
    "unknown": (facts(category=STRANGE), ["unknown_category"]),
    "unknown and failed": (
        facts(due=0, later=1, category=STRANGE, failures=[failure(STRANGE)]),
        ["unknown_category", "backoff"],
    ),
    "unknown holds up the shard": (
        facts(later=1, category=STRANGE, failures=[failure(STRANGE, last_failed_at=NOW)]),
        ["unknown_category", "behind", "backoff"],
    ),
}  # fmt: skip


@pytest.mark.parametrize(("case", "expected"), CASES.values(), ids=CASES.keys())
def test_the_reasons_of_a_shard_and_which_comes_first(case: Facts, expected: list[str]) -> None:
    assert codes(reasons(case, KNOWN)) == expected


@pytest.mark.parametrize("case", [case for case, _ in CASES.values()], ids=CASES.keys())
def test_a_reason_that_blocks_comes_before_those_that_do_not(case: Facts) -> None:
    found = reasons(case, KNOWN)

    assert found[0].blocks
    assert [reason.blocks for reason in found] == sorted((reason.blocks for reason in found), reverse=True)


def test_an_unknown_category_behind_others_is_only_worth_a_word() -> None:
    counts = [CategoryCount(MEMBER, "MEMBER", 1, 1), CategoryCount(STRANGE, "999", 1, 1)]

    assert codes(reasons(facts(messages=2, due=2, categories=counts), KNOWN)) == ["due", "unknown_category"]


def test_two_paused_categories_are_all_there_is() -> None:
    counts = [CategoryCount(MEMBER, "MEMBER", 1, 1), CategoryCount(TEAM, "TEAM", 1, 1)]
    one, both = [switch("category", MEMBER)], [switch("category", MEMBER), switch("category", TEAM)]

    assert codes(reasons(facts(due=2, categories=counts, switches=one), KNOWN)) == ["due", "paused"]
    assert codes(reasons(facts(due=2, categories=counts, switches=both), KNOWN)) == ["paused"]


@pytest.mark.parametrize("last_failed_at", [NOW, PAST], ids=["now", "a minute ago"])
def test_what_is_due_but_paused_does_not_wake_a_failing_shard(last_failed_at: str) -> None:
    counts = [CategoryCount(MEMBER, "MEMBER", 1, 0), CategoryCount(TEAM, "TEAM", 1, 1)]
    off, failing = [switch("category", TEAM)], [failure(last_failed_at=last_failed_at)]

    found = reasons(facts(messages=2, categories=counts, switches=off, failures=failing), KNOWN)

    assert codes(found) == ["backoff", "paused"]


def test_what_is_due_but_paused_does_not_make_the_rest_due() -> None:
    counts = [CategoryCount(MEMBER, "MEMBER", 1, 0), CategoryCount(TEAM, "TEAM", 1, 1)]

    found = reasons(facts(later=1, categories=counts, switches=[switch("category", TEAM)]), KNOWN)

    assert codes(found) == ["not_due", "paused"]
    assert found[0].text == "nothing else is due: the next message is 2026-11-22 06:30:00 UTC (in 30 min)"


class TestReceivers:
    bare = msgspec.structs.replace(KNOWN, categories={MEMBER: KnownCategory("MEMBER", is_received=False)})

    def test_a_category_without_receiver(self) -> None:
        [found] = reasons(facts(), self.bare)

        assert (found.code, found.text) == ("no_receiver", "no receiver is registered for category MEMBER")

    def test_is_no_fault_where_such_messages_are_discarded(self) -> None:
        assert codes(reasons(facts(), msgspec.structs.replace(self.bare, discards_unhandled=True))) == ["due"]

    def test_receivers_that_do_not_import_here_are_said_and_not_guessed(self) -> None:
        known = msgspec.structs.replace(KNOWN, receivers_error="shop.receivers does not import")
        found = reasons(facts(), known)

        assert codes(found) == ["due", "no_receiver"]
        assert "shop.receivers does not import" in said(found[1])


class TestWords:
    def test_a_drained_shard_names_host_and_pid_and_since_when(self) -> None:
        text = said(reasons(facts(claimed_by=HOLDER), KNOWN)[0])

        assert "pid 4711 on host-a" in text
        assert "running since 2026-11-22 05:59:00 UTC (1 min ago)" in text

    def test_of_a_holder_that_hangs_nobody_is_told_to_wait(self) -> None:
        text = said(reasons(facts(claimed_by=msgspec.structs.replace(HOLDER, quiet_s=40.0)), KNOWN)[0])

        assert "it has not touched its claim session for 40 s" in text
        assert "restart it" in text
        assert "Wait" not in text

    def test_a_drain_that_is_silent_is_not_said_to_hang(self) -> None:
        drain = msgspec.structs.replace(HOLDER, is_daemon=False, quiet_s=40.0)  # it counts a deep shard, say

        assert "Wait" in said(reasons(facts(claimed_by=drain), KNOWN)[0])

    def test_a_lock_of_somebody_else_is_not_said_to_hang(self) -> None:
        stranger = Holder(12, "psql", None, None, None, None, quiet_s=4_000.0)

        assert "claim session" not in said(reasons(facts(claimed_by=stranger), KNOWN)[0])

    def test_a_daemon_that_hangs_is_named_and_drain_is_given(self) -> None:
        text = said(reasons(facts(daemons=[HANGING]), KNOWN)[0])

        assert "the daemon with pid 4711 on host-a: it has not touched its claim session for 20 s" in text
        assert DRAIN in text

    def test_what_has_failed_and_is_due_again_says_its_error(self) -> None:
        text = said(reasons(facts(failures=[failure(next_attempt_at=PAST)]), KNOWN)[1])

        assert "MEMBER object 9 has failed 7 times, and is due for its next try" in text
        assert "shop.accept raised ValueError: no" in text

    def test_a_lock_of_nobody_that_is_registered_names_its_backend(self) -> None:
        stranger = Holder(12, "psql", None, None, None, None)

        assert "backend 12 (psql)" in said(reasons(facts(claimed_by=stranger), KNOWN)[0])

    def test_a_pause_says_who_why_and_until_when_and_how_to_end_it(self) -> None:
        text = said(reasons(facts(switches=[switch()]), KNOWN)[0])

        assert "by ada, until 2026-11-22 06:30:00 UTC (in 30 min): their endpoint is down" in text
        assert "outboxd resume 3" in text

    def test_a_pause_without_anything_says_so(self) -> None:
        text = said(reasons(facts(switches=[switch(reason=None, author=None, expires_at=None)]), KNOWN)[0])

        assert "by nobody named, without end: no reason was given" in text

    @pytest.mark.parametrize(
        ("covers", "value", "command"),
        [
            ("shard", '["x y", 42.0, 43]', "options set outbox.off '[\"x y\", 43]'"),
            ("shard", '["42"]', "options unset outbox.off"),
            ("outbox", '["region", "control"]', "options set outbox.off '[\"control\"]'"),
            ("category", '["TEAM", "MEMBER"]', "options set outbox.off '[\"TEAM\"]'"),
        ],
    )
    def test_what_an_option_switches_off_is_taken_out_of_it(self, covers: str, value: str, command: str) -> None:
        category = MEMBER if covers == "category" else None
        option = switch(covers, category, kind="option", pause=None, option="outbox.off", value=value)

        assert reasons(facts(switches=[option]), KNOWN)[0].remedy == [
            f"outboxd {command}".replace(
                "options set ", "options set --reason 'their endpoint is down' --expires 1800s "
            )
        ]

    def test_backoff_says_attempts_error_and_when_it_is_tried_next(self) -> None:
        text = said(reasons(facts(due=0, later=3, failures=[failure()]), KNOWN)[0])

        assert (
            "in backoff after 7 attempts: MEMBER object 9 fails; next try 2026-11-22 06:30:00 UTC (in 30 min)" in text
        )
        assert "shop.accept raised ValueError: no" in text
        assert "2 messages wait behind it" in text
        assert "outboxd retry --outbox region ORGANIZATION_SCOPE 42" in text
        assert "outboxd bury --reason WHY --outbox region 1" in text

    def test_what_waits_behind_names_message_category_and_object(self) -> None:
        failing = failure(STRANGE, last_failed_at=NOW, message_id=17)
        found = reasons(facts(due=2, later=1, failures=[failing]), KNOWN)
        text = next(said(reason) for reason in found if reason.code == "behind")

        assert "2 messages are due but wait behind message 17 (category 999 object 9), which fails" in text
        assert "not before 1 min from now" in text

    def test_a_long_error_is_cut(self) -> None:
        text = said(reasons(facts(due=0, later=1, failures=[failure(last_error="x" * 5_000)]), KNOWN)[0])

        assert len(text) < 1_000

    def test_an_open_transaction_names_pid_application_and_age(self) -> None:
        text = said(reasons(facts(due=0, transactions=[transaction()]), KNOWN)[1])

        assert "backend 55 (shop), role app, idle in transaction, open for 1 min" in text
        assert "SELECT pg_terminate_backend(55);" in text

    def test_a_transaction_that_may_not_be_seen_is_not_guessed_at(self) -> None:
        hidden = transaction(since=None, state=None)
        text = said(reasons(facts(due=0, transactions=[hidden], sees_activity=False), KNOWN)[1])

        assert "age not visible" in text
        assert "pg_read_all_stats" in text

    def test_a_prepared_transaction_is_ended_by_its_name(self) -> None:
        prepared = transaction(pid=None, application_name=None, state=None, prepared="two-phase's")
        text = said(reasons(facts(due=0, transactions=[prepared]), KNOWN)[1])

        assert "ROLLBACK PREPARED 'two-phase''s';" in text

    def test_of_an_empty_shard_the_dead_letters_are_looked_at(self) -> None:
        [empty, _] = reasons(facts(due=0, shard="-5", transactions=[transaction()]), KNOWN)

        assert empty.text.endswith("or is not committed yet")
        assert empty.remedy == ["outboxd dead-letters list --outbox region --scope ORGANIZATION_SCOPE --shard=-5"]

    def test_a_bounded_count_says_at_least(self) -> None:
        text = said(reasons(facts(due=10_000, is_at_least=True), KNOWN)[0])

        assert "at least 10,000 messages are due" in text

    def test_commands_name_the_region_and_quote_what_the_shell_would_split(self) -> None:
        asked = facts(due=0, later=1, region="eu", shard="a b", failures=[failure()])

        assert "outboxd retry --outbox region --region eu ORGANIZATION_SCOPE 'a b'" in said(reasons(asked, KNOWN)[0])

    def test_a_message_of_a_region_is_buried_there(self) -> None:
        text = said(reasons(facts(due=0, later=1, region="eu", failures=[failure()]), KNOWN)[0])

        assert "outboxd bury --reason WHY --outbox region --region eu 1" in text

    def test_an_identifier_that_begins_with_a_dash_is_no_option(self) -> None:
        asked = facts(due=0, later=1, shard="-5", failures=[failure()])

        assert "outboxd retry --outbox region -- ORGANIZATION_SCOPE -5" in said(reasons(asked, KNOWN)[0])


DRAIN = "outboxd drain --outbox region ORGANIZATION_SCOPE 42"
NO_RECEIVER = msgspec.structs.replace(KNOWN, categories={MEMBER: KnownCategory("MEMBER", is_received=False)})


@pytest.mark.parametrize(
    ("more", "known", "works"),
    [
        ({}, KNOWN, True),
        ({"due": 0, "later": 1, "failures": [failure()]}, KNOWN, True),
        ({"switches": [switch("category", TEAM)]}, KNOWN, True),
        ({"due": 0}, KNOWN, False),
        ({"switches": [switch()]}, KNOWN, False),
        ({"switches": [switch("category", MEMBER)]}, KNOWN, False),
        ({"category": STRANGE}, KNOWN, False),
        ({}, NO_RECEIVER, False),
        ({}, msgspec.structs.replace(KNOWN, receivers_error="does not import"), False),
    ],
    ids=["due", "in backoff", "in part off", "empty", "off", "all off", "unknown", "no receiver", "no receivers"],
)
def test_without_a_daemon_drain_is_given_where_it_would_deliver(
    more: dict[str, Any], known: Known, works: bool
) -> None:
    found = reasons(facts(daemons=[], **more), known)
    remedy = next(reason.remedy for reason in found if reason.code == "no_daemon")

    assert [line for line in remedy if "outboxd drain" in line] == ([DRAIN] if works else [])


@pytest.mark.parametrize(
    ("time", "words"),
    [("infinity", "never"), ("294276-01-01T00:00:00+00:00", "never"), ("2026-11-22T06:00:30.5+00:00", "in 30 s")],
)
def test_times_beyond_the_calendar(time: str, words: str) -> None:
    [found] = reasons(facts(due=0, later=1, next_due_at=time), KNOWN)

    assert found.code == "not_due"
    assert words in found.text


@pytest.mark.parametrize("time", ["-infinity", "0044-03-15T00:00:00+00:00 BC", PAST, NOW])
def test_what_is_past_is_due(time: str) -> None:
    assert facts().is_due(time)
