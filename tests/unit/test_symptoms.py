"""What the doctor makes of what it sees: which facts are errors, which are only worth a word."""

from __future__ import annotations

import datetime as dt
from typing import Any

import pytest

from outboxd import symptoms
from outboxd.config import Config, OutboxConfig
from outboxd.doctor import Report, questions
from outboxd.findings import Finding
from tests.drains import CONTROL, REGION, configure

CONFIG = configure(REGION, CONTROL)
PAST = "2026-11-22T05:00:00+00:00"
LATER = "2026-11-23T05:00:00+00:00"


def daemon(**more: Any) -> dict[str, Any]:
    row = {"id": 1, "host": "host-a", "pid": 4711, "silo_mode": "monolith", "outboxes": ["region", "control"]}
    return row | {"died_at": None, "is_long_dead": False, "backend_pid": 900, "quiet_s": 1.0, "claimed": 0} | more


def switch(**more: Any) -> dict[str, Any]:
    row = {
        "id": 3,
        "kind": "shard",
        "what": "USER_SCOPE 5",
        "option": None,
        "reason": "their endpoint",
        "in_force": True,
    }
    return row | {"author": "ada", "since": dt.datetime.now(dt.UTC).isoformat(), "expires_at": None} | more


def option(**more: Any) -> dict[str, Any]:
    row = {"key": "outbox.disabled_outboxes", "state": "in force", "problem": None, "reason": "maintenance"}
    return row | {"updated_by": "grace", "updated_at": dt.datetime.now(dt.UTC).isoformat(), "expires_at": None} | more


def table(**more: Any) -> dict[str, Any]:
    row = {"name": "outbox", "live_rows": 1_000, "dead_rows": 10, "vacuumed_at": PAST, "is_being_vacuumed": False}
    sizes = {"table_bytes": 2**20, "index_bytes": 2**20, "xid_age": 1_000, "xid_age_max": 200_000_000}
    return row | sizes | {"is_never_vacuumed": False, "last_id": 5_000, "id_max": 2**63 - 1} | more


def holder(**more: Any) -> dict[str, Any]:
    row = {"kind": "transaction", "pid": 55, "name": "shop", "role": "app", "state": "idle in transaction"}
    return row | {"age_s": 10.0, "xid_age": 7, "sees_activity": True} | more


def levels(found: list[Finding]) -> list[str]:
    return [each.level for each in found]


class TestDaemons:
    def test_each_outbox_needs_one_of_its_silo(self) -> None:
        assert levels(symptoms.daemons([daemon()], CONFIG)) == ["ok", "ok"]
        assert levels(symptoms.daemons([daemon(silo_mode="region")], CONFIG)) == ["ok", "error"]
        assert levels(symptoms.daemons([daemon(outboxes=["control"])], CONFIG)) == ["error", "ok"]
        assert levels(symptoms.daemons([], CONFIG)) == ["error", "error"]

    def test_a_dead_one_drains_nothing_and_is_named(self) -> None:
        *none, dead = symptoms.daemons([daemon(backend_pid=None, quiet_s=None, died_at=PAST)], CONFIG)

        assert levels(none) == ["error", "error"]
        assert dead.level == "warning"
        assert dead.text.startswith("pid 4711 on host-a died at 2026-11-22 05:00:00 UTC: for five minutes, ")

    def test_a_death_of_long_ago_is_only_told(self) -> None:
        *_, dead = symptoms.daemons([daemon(backend_pid=None, died_at=PAST, is_long_dead=True)], CONFIG)

        assert dead == Finding("info", "daemons", "pid 4711 on host-a died at 2026-11-22 05:00:00 UTC")

    def test_one_that_hangs_is_an_error(self) -> None:
        assert levels(symptoms.daemons([daemon(quiet_s=16.0)], CONFIG)) == ["ok", "ok", "error"]
        assert levels(symptoms.daemons([daemon(quiet_s=None)], CONFIG)) == ["ok", "ok"]


@pytest.mark.parametrize(
    ("lag", "claimed", "expected"),
    [
        ({"due": 0, "lag_s": 0.0}, 0, "ok"),
        ({"due": 9, "lag_s": 5.0}, 0, "ok"),
        ({"due": 9, "lag_s": 60.0}, 1, "ok"),
        ({"due": 9, "lag_s": 60.0}, 0, "error"),
        ({"due": 9, "lag_s": 60.0, "is_off": True}, 0, "ok"),
    ],
)
def test_due_shards_that_nobody_claims_are_an_error(lag: dict[str, Any], claimed: int, expected: str) -> None:
    lags = {"region": {"is_off": False} | lag}
    own = daemon(claimed=claimed, outboxes=["region"])

    assert levels(symptoms.claims([own], lags, configure(REGION))) == [expected]
    assert symptoms.claims([], lags, configure(REGION)) == []


def test_of_claims_that_may_be_of_another_outbox_no_more_is_said_than_is_known() -> None:
    lags = {name: {"is_off": False, "due": due, "lag_s": 60.0 * due} for name, due in (("region", 9), ("control", 0))}
    found = symptoms.claims([daemon(claimed=3)], lags, CONFIG)
    none = symptoms.claims([daemon()], lags, CONFIG)

    assert levels(found) == ["info", "ok"]
    assert found[0].text.endswith(
        "its daemons hold 3 shards at this moment, of all their outboxes: perhaps none is of this one"
    )
    assert found[1].text == "its daemons hold 3 shards at this moment, of all their outboxes"
    assert (levels(none), none[1].text) == (["error", "ok"], "its daemons hold 0 shards at this moment")


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        (switch(), "info"),
        (switch(since="2020-01-01T00:00:00+00:00"), "warning"),
        (switch(since="-infinity"), "warning"),
        (switch(since="0044-03-15T00:00:00+00:00 BC"), "warning"),
        (switch(since="2020-01-01T00:00:00+00:00", expires_at=LATER), "info"),
        (switch(reason=None), "warning"),
        (switch(expires_at="infinity"), "info"),
    ],
)
def test_what_is_switched_off_without_reason_or_end_was_perhaps_forgotten(row: dict[str, Any], expected: str) -> None:
    assert levels(symptoms.switches([row], [])) == [expected]


def test_an_option_is_one_finding_however_long_its_list() -> None:
    rows = [switch(id=None, option="outbox.disabled_outboxes", kind="outbox", what=f"o{n}") for n in range(7)]

    (found,) = symptoms.switches(rows, [option()])

    assert found.level == "info"
    assert found.subject == "option outbox.disabled_outboxes"
    assert found.text.startswith("outbox o0, outbox o1, outbox o2, outbox o3, outbox o4 and 2 more, by grace since ")


def test_an_option_that_means_nothing_is_pointed_out() -> None:
    (found,) = symptoms.switches([], [option(problem="expected a list of names of outboxes")])

    assert found.level == "warning"
    assert found.remedy == "outboxd options get outbox.disabled_outboxes"


def test_what_was_lifted_for_a_while_is_not_switched_off() -> None:
    (found,) = symptoms.switches([switch(in_force=False)], [])

    assert found.text == "nothing is switched off"


def test_nothing_switched_off_is_said() -> None:
    assert symptoms.switches([], []) == [Finding("ok", "kill switches", "nothing is switched off")]


@pytest.mark.parametrize(
    ("shards", "failing", "expected"),
    [(0, 0, "ok"), (9, 0, "ok"), (1, 1, "warning"), (9, 8, "warning"), (9, 9, "error")],
)
def test_everything_in_backoff_is_an_error_and_something_is_not(shards: int, failing: int, expected: str) -> None:
    row = {"shards": shards, "failing": failing, "is_at_least": False}

    assert levels(symptoms.backoff(row, REGION)) == [expected]


@pytest.mark.parametrize(("shards", "expected"), [(1, "warning"), (9, "warning"), (10, "error")])
def test_one_error_in_many_shards_is_a_receiver_that_fails_wholesale(shards: int, expected: str) -> None:
    row = {
        "category": "MEMBER",
        "shards": shards,
        "shards_at_least": False,
        "objects": 12,
        "objects_at_least": True,
        "attempts": 3,
        "last_failed_at": PAST,
        "error": "a\nb",
    }
    [found] = symptoms.failures([row], REGION)

    assert found.level == expected
    assert found.text.endswith("(at least 12 objects, up to 3 attempts, last 2026-11-22 05:00:00 UTC): a b")


class TestTable:
    @pytest.mark.parametrize(
        ("row", "expected"),
        [
            (table(), ["ok"]),
            (table(live_rows=None, dead_rows=None, vacuumed_at=None), ["ok"]),
            (table(dead_rows=200_000), ["warning"]),
            (table(dead_rows=200_000, is_being_vacuumed=True), ["ok"]),
            (table(dead_rows=200_000, live_rows=1_000_000), ["ok"]),
            (table(table_bytes=2**30), ["warning"]),
            (table(table_bytes=2**30, live_rows=1_000_000), ["ok"]),
            (table(is_never_vacuumed=True), ["warning"]),
            (table(xid_age=400_000_000), ["error"]),
        ],
    )
    def test_bloat_and_wraparound(self, row: dict[str, Any], expected: list[str]) -> None:
        assert levels(symptoms.table(row, REGION)) == expected

    @pytest.mark.parametrize(
        ("last", "expected"), [(None, "info"), (1, "ok"), (1_200_000_000, "warning"), (2_000_000_000, "error")]
    )
    def test_the_room_of_integer_ids(self, last: int | None, expected: str) -> None:
        assert levels(symptoms.sequence(table(last_id=last, id_max=2**31 - 1), REGION)) == [expected]


class TestHorizon:
    @pytest.mark.parametrize(
        ("row", "expected", "words"),
        [
            (holder(), "info", "backend 55 (shop), role app, idle in transaction, for 10 s, holds back vacuum"),
            (holder(age_s=301.0), "warning", "for 5 min 1 s"),
            (holder(age_s=3_601.0), "error", "for 1 h"),
            (holder(kind="prepared", name="gid", age_s=4_000.0), "error", "prepared transaction gid of app"),
            (
                holder(kind="slot", name="old", state="inactive", age_s=None),
                "warning",
                "replication slot old (inactive)",
            ),
            (holder(kind="slot", name="used", state="active", age_s=None), "info", "replication slot used (active)"),
            (holder(kind="standby", name="replica", age_s=None), "info", "standby replica"),
            (holder(kind="standby", name="replica", age_s=None, xid_age=100_000), "warning", "standby replica"),
        ],
    )
    def test_who_holds_vacuum_back(self, row: dict[str, Any], expected: str, words: str) -> None:
        [found] = symptoms.horizon([row])

        assert (found.level, words in found.text) == (expected, True), found.text

    def test_what_may_not_be_seen_is_said(self) -> None:
        alone = holder(kind=None, sees_activity=False)

        assert levels(symptoms.horizon([alone])) == ["info"]
        assert "pg_read_all_stats" in symptoms.horizon([alone])[0].remedy

    def test_nothing(self) -> None:
        assert levels(symptoms.horizon([holder(kind=None)])) == ["ok"]

    def test_statements_of_daemons_are_no_news_unless_they_hang(self) -> None:
        assert levels(symptoms.horizon([holder(name="outboxd: read region")])) == ["ok"]
        assert levels(symptoms.horizon([holder(name="outboxd: read region", age_s=400.0)])) == ["warning"]


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"due": 0, "lag_s": 0.0, "is_off": False}, "ok"),
        ({"due": 5, "lag_s": 60.0, "is_off": False}, "ok"),
        ({"due": 5, "lag_s": 60.1, "is_off": False}, "error"),
        ({"due": 5, "lag_s": 900.0, "is_off": True}, "info"),
    ],
)
def test_lag_over_the_objective_is_an_error(row: dict[str, Any], expected: str) -> None:
    assert levels(symptoms.lag(row, REGION, 60.0)) == [expected]


@pytest.mark.parametrize(("granted", "expected"), [(True, "error"), (False, "warning")])
def test_who_locks_the_table_is_named(granted: bool, expected: str) -> None:
    row = holder(application="psql", mode="AccessExclusiveLock", granted=granted)
    [found] = symptoms.locks([row], REGION)

    assert found.level == expected
    assert "backend 55 (psql)" in found.text
    assert found.remedy.endswith("SELECT pg_terminate_backend(55);")


class TestReport:
    def report(self, *found: Finding, is_blind: bool = False) -> Report:
        made = Report(is_blind=is_blind)
        made.found["lag"] += found
        return made

    def test_the_verdict_and_the_exit_code_agree(self) -> None:
        error = Finding("error", "x", "broken")
        unreachable = Finding("error", "x", "away", exit_code=69)

        assert (self.report().exit_code, self.report().verdict) == (0, "all is well")
        assert self.report(Finding("warning", "x", "odd")).exit_code == 0
        assert self.report(Finding("warning", "x", "odd")).verdict == "no errors, 1 warning"
        assert self.report(error).exit_code == 1
        assert self.report(error).verdict.startswith("something is wrong: 1 error")
        assert self.report(error, is_blind=True).exit_code == 78
        assert self.report(unreachable, is_blind=True).exit_code == 69
        assert self.report(unreachable, is_blind=True).verdict.startswith("cannot look")

    def test_the_document_names_the_check_of_each_finding(self) -> None:
        document = self.report(Finding("error", "outbox region", "late", "hurry")).as_json()

        assert document["findings"] == [
            {"check": "lag", "level": "error", "subject": "outbox region", "text": "late", "remedy": "hurry"}
        ]


def test_questions_need_no_scope_and_no_category() -> None:
    bare = Config(outbox=[OutboxConfig(name="main", table="outbox")])

    assert all(question.for_psql() for _, _, question in questions(bare))
