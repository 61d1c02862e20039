"""`outboxd doctor` on databases in trouble: everything is named, nothing is waited for, and the exit code says it."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import doctor, explain
from outboxd.check import prepare
from outboxd.embedded import embedded_postgres
from tests.drains import REGION, by_hand, connected, write
from tests.integration.operate.roles import reading_role
from tests.integration.schema_cases import empty_database
from tests.processes import run
from tests.psql import rows_of
from tests.trouble import DEAD_HOST, HEALTHY, INVISIBLE, UNHANDLED, Trouble, troubled

if TYPE_CHECKING:
    from pathlib import Path

    from tests.conftest import Postgres


async def diagnosed(trouble: Trouble, **options: Any) -> tuple[int | None, dict[str, Any]]:
    done = await run("doctor", "--json", config=trouble.file, **options)
    assert "Traceback" not in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    assert document["exit_code"] == done.returncode
    return done.returncode, document


async def examined(trouble: Trouble) -> doctor.Report:
    """The same within this process."""
    return await doctor.examine(prepare(lambda: trouble.loaded, no_receiver="error"))


def errors(document: dict[str, Any]) -> list[dict[str, str]]:
    return [each for each in document["findings"] if each["level"] == "error"]


def said(report: doctor.Report, check: str, level: str = "error") -> str:
    return "\n".join(f"{each.subject}: {each.text}" for each in report.found[check] if each.level == level)


async def test_the_troubled_database_is_named_in_every_part_and_is_wrong(trouble: Trouble) -> None:
    code, document = await diagnosed(trouble)

    texts = [f"{each['check']} {each['level']}: {each['text']}" for each in document["findings"]]
    assert code == 1
    assert document["verdict"].startswith("something is wrong: 2 errors")
    for words in (
        "daemons error: no daemon is running that drains it (silo region)",
        "daemons error: no daemon is running that drains it (silo control)",
        f"daemons info: pid 4242 on {DEAD_HOST} died at ",
        f"daemons warning: pid 4242 on {DEAD_HOST} has died, and no other daemon has noticed yet",
        "switches info: shard ORGANIZATION_SCOPE 5, by ada",
        "switches info: shard USER_SCOPE 22 in us, by grace",
        "switches info: category AUDIT, by ada",
        "switches info: shard ORGANIZATION_SCOPE 6, by grace",
        "backoff warning: 4 of 10 waiting shards in backoff",
        "backoff warning: 1 of 4 waiting shards in backoff",
        "failures warning: category MEMBER fails in 1 shard",
        "failures warning: category 999 fails in 1 shard",
        "failures warning: category PROFILE fails in 1 shard",
        "receivers warning: no receiver for INVOICE",
        'tables ok: "public"."outbox" has what it needs',
        f"vacuum info: backend {trouble.blocker} ",
        "sequence ok: id ",
        "clock info: ",
        "pooler ok: dsn: directly to PostgreSQL",
        "lag ok: ",
    ):
        assert any(text.startswith(words) for text in texts), (words, texts)
    checks = [each["check"] for each in document["findings"]]
    assert sorted(checks, key=doctor.ORDER.index) == checks


async def test_every_error_and_warning_of_the_text_ends_in_a_verdict(trouble: Trouble) -> None:
    done = await run("doctor", config=trouble.file)

    assert done.stdout_lines[-1].startswith("verdict: something is wrong: ")
    assert done.stdout.count("\nerror    ") == 2


async def test_a_registered_daemon_that_claims_nothing_is_found_out(trouble: Trouble) -> None:
    await trouble.connection.execute("UPDATE outbox SET date_added = now() - interval '1 hour'")
    async with by_hand(trouble.dsn, trouble.config) as replica:
        idle = await examined(trouble)
        await replica.claims.claim([c for c in await replica.find() if c.shard == (0, HEALTHY)])
        busy = await examined(trouble)

    assert said(idle, "daemons") == ""
    assert "messages have been due for 1 h, and its daemons have claimed no shard" in said(idle, "claims")
    assert said(busy, "claims") == ""
    assert "been due for 1 h; doctor.lag_slo_s is 60" in said(busy, "lag")


@pytest.mark.parametrize(
    ("added", "due", "level"),
    [
        ("-infinity", "-infinity", "error"),
        ("0044-03-15 BC", "-infinity", "error"),
        ("infinity", "-infinity", "ok"),
        ("20000-01-01", "-infinity", "ok"),
        ("now", "infinity", "ok"),
        ("now", "20000-01-01", "ok"),
    ],
)
async def test_times_at_the_edge_of_time_are_answered(trouble: Trouble, added: str, due: str, level: str) -> None:
    await trouble.connection.execute("DELETE FROM outbox WHERE shard_identifier <> 1")
    await trouble.connection.execute(f"UPDATE outbox SET date_added = '{added}', scheduled_for = '{due}'")

    async with by_hand(trouble.dsn, trouble.config):
        report = await examined(trouble)
        known = explain.look_up(trouble.loaded, REGION)
        asked = explain.Asked(REGION, 0, str(HEALTHY))
        answer = await explain.explain(trouble.connection, trouble.config, asked, known)

    assert [each.level for each in report.found["lag"] if each.subject == "outbox region"] == [level]
    assert f"{answer.facts['messages']} message" in "\n".join(explain.lines(answer))


async def test_a_receiver_module_may_run_an_event_loop_when_it_is_imported(trouble: Trouble) -> None:
    lines = ["import asyncio", "from tests.trouble_receivers import replicate", "asyncio.run(asyncio.sleep(0))"]
    trouble.file.with_name("looping.py").write_text("\n".join(lines))
    trouble.file.write_text(trouble.file.read_text().replace("tests.trouble_receivers", "looping"))

    _, document = await diagnosed(trouble)
    checked = await run("check", config=trouble.file)
    async with by_hand(trouble.dsn, trouble.config):
        explained = await run("explain", "0", str(UNHANDLED), "--json", config=trouble.file)

    assert "6 registered, from looping" in [each["text"] for each in document["findings"]]
    assert "6 registered, from looping" in checked.stdout
    assert json.loads(explained.stdout)["reason"] == "no_receiver"


async def test_a_daemon_is_found_behind_all_those_that_died_after_its_start(trouble: Trouble) -> None:
    async with by_hand(trouble.dsn, trouble.config):
        await trouble.connection.execute(
            "INSERT INTO outboxd.worker (host, pid, version, silo_mode, outboxes, died_at)"
            " SELECT 'looping', n, '1', 'monolith', '[{\"name\": \"region\"}]', now() FROM generate_series(1, 150) AS n"
        )
        report = await examined(trouble)
        known = explain.look_up(trouble.loaded, REGION)
        asked = explain.Asked(REGION, 0, str(HEALTHY))
        answer = await explain.explain(trouble.connection, trouble.config, asked, known)

    assert said(report, "daemons") == ""
    assert said(report, "daemons", "ok").count("drained by pid ") == 2
    assert said(report, "daemons", "warning").startswith("daemons: pid 150 on looping died at ")
    assert "no_daemon" not in [each.code for each in answer.reasons]


async def test_what_is_paused_or_failing_is_not_late(trouble: Trouble) -> None:
    """Only shard 1 and 2, and object 42 and 43 of a failing shard, could be delivered: take the first two away."""
    await trouble.connection.execute("DELETE FROM outbox WHERE shard_identifier IN (1, 2)")
    await trouble.connection.execute("DELETE FROM control_outbox")
    await trouble.connection.execute("UPDATE outbox SET date_added = now() - interval '1 hour'")

    report = await examined(trouble)

    assert said(report, "lag") == ""
    assert said(report, "lag", "ok").count("nothing is due that could be delivered") == 2


async def test_an_outbox_that_is_switched_off_is_not_late(trouble: Trouble) -> None:
    await trouble.connection.execute("UPDATE outbox SET date_added = now() - interval '1 hour'")
    late = await examined(trouble)
    await trouble.connection.execute(
        "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_outboxes', '[\"region\"]')"
    )
    off = await examined(trouble)

    assert said(late, "lag") != ""
    assert said(off, "lag") == ""
    assert "no reason was given" in said(off, "switches", "warning")


async def test_an_option_that_is_no_list_is_pointed_out(trouble: Trouble) -> None:
    await trouble.connection.execute(
        "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_categories', '\"AUDIT\"')"
    )

    assert "expected a list of names of categories: it, or a part of it, has no effect" in said(
        await examined(trouble), "switches", "warning"
    )


async def test_receivers_that_fail_wholesale_are_one_error(trouble: Trouble) -> None:
    await trouble.connection.execute(
        "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, category, object_identifier, message_id,"
        " last_error) SELECT 'region', 0, n::text, 1, n::text, n, 'shop.accept raised Busy: try ' || n"
        " FROM generate_series(100, 149) AS n"
    )

    assert said(await examined(trouble), "failures").startswith("outbox region: category MEMBER fails in 50 shards")


async def test_a_shard_in_which_thousands_fail_hides_no_other(trouble: Trouble) -> None:
    await trouble.connection.execute(
        "INSERT INTO outboxd.failure (outbox, shard_scope, shard_identifier, category, object_identifier, message_id,"
        " attempts, last_error) SELECT 'region', 0, CASE WHEN n <= 10000 THEN '0' ELSE n::text END,"
        " CASE WHEN n <= 10000 THEN 4 ELSE 2 END, n, n, 9, 'shop.accept raised Busy'"
        " FROM generate_series(1, 10050) AS n"
    )

    report = await examined(trouble)

    assert said(report, "failures").startswith("outbox region: category TEAM fails in 50 shards (50 objects, ")
    assert "category SKIPPING fails in 1 shard (at least 20 objects, " in said(report, "failures", "warning")


async def test_more_failing_shards_than_are_looked_at_are_said_to_be_more(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(doctor._VALUES, "shards_max", 2)

    assert "fails in at least 1 shard (at least 1 object, " in said(await examined(trouble), "failures", "warning")


async def test_no_receiver_at_all_is_an_error(trouble: Trouble) -> None:
    trouble.file.write_text(trouble.file.read_text().replace('modules = ["tests.trouble_receivers"]', "modules = []"))

    _, document = await diagnosed(trouble)

    assert any("NO RECEIVER" in each["text"] for each in errors(document))


async def test_a_missing_table_is_said_once(trouble: Trouble) -> None:
    trouble.file.write_text(trouble.file.read_text().replace('table = "control_outbox"', 'table = "nothing"'))

    _, document = await diagnosed(trouble)

    said_of_it = [each for each in errors(document) if "there is no table nothing" in each["text"]]
    assert [(each["check"], each["subject"]) for each in said_of_it] == [("tables", "outbox control")]


async def test_a_locked_table_is_not_waited_for_and_the_locker_is_named(trouble: Trouble) -> None:
    async with connected(trouble.dsn) as other, other.transaction():
        await other.execute("LOCK TABLE control_outbox")
        backend = other.get_server_pid()

        report = await examined(trouble)

    assert f"backend {backend} " in said(report, "locks")
    assert "AccessExclusiveLock" in said(report, "locks")
    assert said(report, "lag", "ok").count("outbox") == 1
    assert "timeout" not in str(report.findings)


async def test_a_check_that_takes_too_long_is_a_finding(trouble: Trouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_LOOKS_INTO_TABLE", ())
    monkeypatch.setattr(doctor, "CHECK_S_MAX", 0.2)
    async with connected(trouble.dsn) as other, other.transaction():
        await other.execute("LOCK TABLE control_outbox")

        report = await examined(trouble)

    assert "checking lag of outbox control: canceling statement due to statement timeout" in said(
        report, "lag", "warning"
    )
    assert said(report, "lag", "ok").startswith("outbox region")


async def test_a_missing_index_and_a_sequence_that_ends(trouble: Trouble) -> None:
    await trouble.connection.execute(
        "DROP INDEX control_outbox_region_name_shard_scope_shard_identifier_id_idx;"
        " ALTER TABLE control_outbox ALTER id TYPE integer;"
        " SELECT setval(pg_get_serial_sequence('control_outbox', 'id'), 2100000000)"
    )

    report = await examined(trouble)

    assert "there is no valid index on (region_name, shard_scope, shard_identifier, id)" in said(report, "tables")
    assert "outbox control: id 2,100,000,000 of 2,147,483,647: 98% are used" in said(report, "sequence")


async def test_a_prepared_transaction_and_a_slot_hold_vacuum_back(tmp_path: Path) -> None:
    settings = {"max_prepared_transactions": 2, "wal_level": "logical"}
    async with (
        embedded_postgres(durable=False, settings=settings) as dsn,
        troubled(dsn, tmp_path) as trouble,
        connected(dsn) as other,
    ):
        await other.execute("BEGIN")
        await write(other, shard=INVISIBLE)
        await other.execute("PREPARE TRANSACTION 'forgotten'")

        report = await examined(trouble)
        await other.execute("ROLLBACK PREPARED 'forgotten'")

    assert "prepared transaction forgotten of outbox" in said(report, "vacuum", "info")


async def test_redis_that_is_away_is_an_error_and_one_that_is_there_is_not(trouble: Trouble, valkey: str) -> None:
    plain = trouble.file.read_text()
    found = {}
    for url in (valkey, "redis://:secret@127.0.0.1:1"):
        trouble.file.write_text(f'redis_url = "{url}"\n{plain}\n[backfill]\nstate = "redis"\n')
        _, document = await diagnosed(trouble)
        [found[url]] = [each for each in document["findings"] if each["check"] == "redis"]

    assert [each["level"] for each in found.values()] == ["ok", "error"]
    assert "secret" not in str(list(found.values()))


class TestCannotLook:
    async def test_no_database(self, trouble: Trouble) -> None:
        code, document = await diagnosed(trouble, env={"OUTBOX_DSN": "postgresql:///x?host=/nonexistent"})

        assert code == 69
        assert [each["check"] for each in document["findings"]] == ["database"]

    async def test_not_migrated(self, trouble: Trouble, postgres: Postgres) -> None:
        async with empty_database(postgres) as dsn:
            code, document = await diagnosed(trouble, env={"OUTBOX_DSN": dsn})

        assert code == 78
        assert errors(document)[-1]["remedy"] == "Run `outboxd migrate`."
        assert document["verdict"].startswith("cannot look")

    async def test_a_wrong_configuration(self, trouble: Trouble) -> None:
        trouble.file.write_text("[drian]\n")
        code, document = await diagnosed(trouble)

        assert code == 78
        assert "did you mean drain?" in document["findings"][0]["text"]

    async def test_a_missing_privilege_is_named_with_its_grant(self, trouble: Trouble) -> None:
        async with reading_role(trouble.connection, trouble.dsn, "control_outbox") as dsn:
            code, document = await diagnosed(trouble, env={"OUTBOX_DSN": dsn})

        assert code == 78
        assert errors(document)[-1]["remedy"].startswith("GRANT SELECT ON public.outbox TO ")


async def test_a_reader_sees_all_but_what_other_roles_do_and_says_so(trouble: Trouble) -> None:
    async with reading_role(trouble.connection, trouble.dsn, "outbox", "control_outbox") as dsn:
        code, document = await diagnosed(trouble, env={"OUTBOX_DSN": dsn})

    assert code == 1
    [hidden] = [each for each in document["findings"] if "does not see the transactions" in each["text"]]
    assert hidden["check"] == "vacuum"
    assert ["no daemon" in each["text"] for each in errors(document)] == [True, True]


async def test_the_questions_for_psql_need_no_connection_and_run_there(trouble: Trouble) -> None:
    done = await run("--dsn", "postgresql://nobody@127.0.0.1:1/none", "doctor", "--sql", config=trouble.file)

    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("-- What is switched off: ")
    questions = [f"{each.removesuffix(';')};\n" for each in done.stdout.strip().split(";\n\n")]
    assert len(questions) == 2 + len(doctor.GLOBAL) + 2 * len(doctor.BY_OUTBOX)
    for question in questions:
        assert "LIMIT" in question
        await rows_of(trouble.dsn, question)
