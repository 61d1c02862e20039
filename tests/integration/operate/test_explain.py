"""`outboxd explain` on a database with all kinds of trouble: the first line is the reason that matters."""

from __future__ import annotations

import json
import os
import re
import shlex
import uuid
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import access, explain, shard_facts
from outboxd.claims import SHARD_CLASS
from outboxd.embedded import embedded_postgres
from outboxd.model import Candidate
from tests.drains import by_hand, connected, shard_locks, write
from tests.integration.operate.roles import reading_role
from tests.processes import run
from tests.psql import rows_of
from tests.trouble import (
    BURIED,
    CATEGORY_OFF,
    DEEP,
    DEEP_ROWS,
    EU_FAILING,
    FAILING,
    FUTURE,
    HEALTHY,
    INVISIBLE,
    PAUSED,
    SKIPPING,
    SWITCHED_OFF,
    UNHANDLED,
    UNKNOWN,
    US_PAUSED,
    Trouble,
    troubled,
)

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

    import asyncpg


@pytest.fixture
async def watched(trouble: Trouble) -> AsyncIterator[Trouble]:
    """The same, while a daemon is registered that never claims anything by itself."""
    async with by_hand(trouble.dsn, trouble.config):
        yield trouble


async def explained(trouble: Trouble, *arguments: object, **options: Any) -> dict[str, Any]:
    done = await run("explain", *map(str, arguments), "--json", config=trouble.file, **options)
    assert done.returncode == 0, done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return document


async def answer(trouble: Trouble, scope: str, shard: object, region: str | None = None) -> explain.Answer:
    """The same within this process."""
    asked = explain.Asked(
        trouble.config.outboxes[region is not None], trouble.config.scopes[scope].value, str(shard), region
    )
    async with access.opened(trouble.loaded, "reader", name="explain") as connection:
        known = explain.look_up(trouble.loaded, asked.outbox)
        return await explain.explain(connection, trouble.config, asked, known)


def codes(found: explain.Answer) -> list[str]:
    return [reason.code for reason in found.reasons if reason.blocks]


async def test_every_shard_of_the_trouble_says_its_reason(watched: Trouble) -> None:
    expected = {
        HEALTHY: ["due"],
        DEEP: ["due"],
        FAILING: ["backoff"],
        SKIPPING: ["due"],
        PAUSED: ["paused"],
        SWITCHED_OFF: ["paused"],
        CATEGORY_OFF: ["paused"],
        FUTURE: ["not_due"],
        UNKNOWN: ["unknown_category", "backoff"],
        UNHANDLED: ["no_receiver", "backoff"],
        BURIED: ["empty"],
        INVISIBLE: ["empty"],  # of which shard the open transaction's message is, nobody can tell
    }

    found = {shard: codes(await answer(watched, "ORGANIZATION_SCOPE", shard)) for shard in expected}

    assert found == expected
    assert codes(await answer(watched, "USER_SCOPE", EU_FAILING, "eu")) == ["backoff"]
    assert codes(await answer(watched, "USER_SCOPE", US_PAUSED, "us")) == ["paused"]
    assert codes(await answer(watched, "USER_SCOPE", US_PAUSED, "eu")) == ["due"]


async def test_a_daemon_that_hangs_is_told_of(watched: Trouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_facts, "QUIET_S_MAX", -1.0)  # whatever it did last was too long ago

    found = await answer(watched, "ORGANIZATION_SCOPE", HEALTHY)

    assert codes(found) == ["hanging"]
    assert found.facts["daemons"][0]["quiet_s"] >= 0
    assert f"the daemon with pid {os.getpid()} on " in found.reasons[0].details[0]


async def test_a_holder_that_hangs_is_told_of(trouble: Trouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shard_facts, "QUIET_S_MAX", -1.0)
    key = (await answer(trouble, "ORGANIZATION_SCOPE", HEALTHY)).facts["lock_key"]
    async with by_hand(trouble.dsn, trouble.config) as replica:
        await replica.claims.claim([Candidate((0, HEALTHY), key, None)])

        found = await answer(trouble, "ORGANIZATION_SCOPE", HEALTHY)

    assert codes(found) == ["draining"]
    assert found.facts["claimed_by"]["quiet_s"] >= 0
    assert found.reasons[0].details[-1].startswith("it has not touched its claim session for ")


async def test_a_failing_shard_tells_its_error_and_what_waits_behind(watched: Trouble) -> None:
    done = await run("explain", "ORGANIZATION_SCOPE", str(FAILING), config=watched.file)

    assert done.stdout_lines[0].startswith("in backoff after 3 attempts: MEMBER object 31 fails; next try ")
    assert "replica.example answers 503 for object 31" in done.stdout
    assert "11 messages wait behind it" in done.stdout
    assert f"-> outboxd retry --outbox region ORGANIZATION_SCOPE {FAILING}" in done.stdout
    assert done.stdout_lines[-1] == f"shard {FAILING} of ORGANIZATION_SCOPE, outbox region: 12 messages, 0 due"


async def test_new_messages_wait_behind_the_one_that_fails(watched: Trouble) -> None:
    await write(watched.connection, shard=FAILING, obj=777)

    found = await answer(watched, "ORGANIZATION_SCOPE", FAILING)

    assert codes(found) == ["behind"]
    head = await watched.connection.fetchval("SELECT min(id) FROM outbox WHERE shard_identifier = $1", FAILING)
    assert f"1 message is due but waits behind message {head} (MEMBER object 31)" in found.headline


async def test_a_pause_is_told_with_who_why_and_until_when(watched: Trouble) -> None:
    [pause] = (await answer(watched, "ORGANIZATION_SCOPE", PAUSED)).reasons

    assert re.search(r"by ada, until .* UTC \(in [12] h.*\): their endpoint is down", pause.details[0])


async def test_an_uncommitted_message_names_the_transaction(watched: Trouble) -> None:
    document = await explained(watched, 0, INVISIBLE)

    assert document["headline"].endswith("or is not committed yet")
    assert [each["pid"] for each in document["facts"]["transactions"]] == [watched.blocker]
    assert document["reasons"][1]["code"] == "uncommitted"
    assert f"backend {watched.blocker} " in document["reasons"][1]["details"][0]


async def test_an_open_transaction_does_not_hide_the_way_to_the_dead_letters(watched: Trouble) -> None:
    done = await run("explain", "0", str(BURIED), config=watched.file)
    command = next(line for line in done.stdout_lines if "-> outboxd dead-letters" in line).split("-> outboxd ")[1]

    letters = await run(*shlex.split(command), "--json", config=watched.file)

    assert [row["shard_identifier"] for row in json.loads(letters.stdout)] == [str(BURIED)] * 2


async def test_what_an_option_switches_off_can_be_copied_to_switch_it_on(watched: Trouble) -> None:
    await watched.connection.execute("UPDATE outboxd.option SET value = '[5, 6]' WHERE key LIKE '%ORGANIZATION_SCOPE'")
    [reason] = (await answer(watched, "ORGANIZATION_SCOPE", SWITCHED_OFF)).reasons

    done = await run(*shlex.split(reason.remedy[0])[1:], config=watched.file)

    assert done.returncode == 0, done.stderr
    assert (await answer(watched, "ORGANIZATION_SCOPE", SWITCHED_OFF)).reasons[0].code == "due"
    assert (await answer(watched, "ORGANIZATION_SCOPE", PAUSED)).reasons[0].details[-1].startswith("the shard: option")


async def test_a_shard_that_begins_with_a_dash_can_be_acted_on_by_what_is_printed(watched: Trouble) -> None:
    await write(watched.connection, shard=-5, due_in_s=3_600)
    [reason] = (await answer(watched, "ORGANIZATION_SCOPE", -5)).reasons

    done = await run(*shlex.split(reason.remedy[-1])[1:], config=watched.file)

    assert (done.returncode, done.stdout[:20]) == (0, "made due: 1 message "), done.stderr


async def test_a_prepared_transaction_hides_messages_too(tmp_path: Path) -> None:
    settings = {"max_prepared_transactions": 2}
    async with (
        embedded_postgres(durable=False, settings=settings) as dsn,
        troubled(dsn, tmp_path) as trouble,
        connected(dsn) as other,
    ):
        await other.execute("BEGIN")
        await write(other, shard=500)
        await other.execute("PREPARE TRANSACTION 'forgotten'")

        [_, reason, *_] = (await answer(trouble, "ORGANIZATION_SCOPE", 500)).reasons

        assert any(detail.startswith("prepared transaction forgotten, open for") for detail in reason.details)
        assert "ROLLBACK PREPARED 'forgotten';" in reason.remedy


async def test_without_a_daemon_that_is_said_first(trouble: Trouble) -> None:
    found = await answer(trouble, "ORGANIZATION_SCOPE", HEALTHY)

    assert codes(found) == ["no_daemon"]
    assert found.headline == "no daemon is running that drains outbox region"


async def test_who_has_claimed_the_shard_is_found_by_its_lock(trouble: Trouble) -> None:
    async with by_hand(trouble.dsn, trouble.config) as replica:
        candidates = [c for c in await replica.find() if c.shard == (0, HEALTHY)]
        [claim] = await replica.claims.claim(candidates)
        assert await shard_locks(trouble.connection) == 1

        found = await answer(trouble, "ORGANIZATION_SCOPE", HEALTHY)
        other = await answer(trouble, "ORGANIZATION_SCOPE", DEEP)

        assert found.facts["lock_key"] == claim.lock_key
        assert codes(found) == ["draining"]
        assert f"pid {os.getpid()} on " in found.headline
        assert codes(other) == ["due"]


async def test_a_lock_of_somebody_who_is_no_daemon_names_its_backend(trouble: Trouble) -> None:
    async with connected(trouble.dsn) as other:
        key = (await answer(trouble, "ORGANIZATION_SCOPE", HEALTHY)).facts["lock_key"]
        await other.execute(f"SELECT pg_advisory_lock({SHARD_CLASS}, {key})")

        found = await answer(trouble, "ORGANIZATION_SCOPE", HEALTHY)

        assert f"backend {other.get_server_pid()} " in found.headline


async def test_a_deep_shard_is_counted_and_a_deeper_one_only_so_far(
    trouble: Trouble, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact = await answer(trouble, "ORGANIZATION_SCOPE", DEEP)
    monkeypatch.setattr(explain, "MESSAGES_MAX", 1_000)
    bounded = await answer(trouble, "ORGANIZATION_SCOPE", DEEP)

    assert (exact.facts["messages"], exact.facts["is_at_least"]) == (DEEP_ROWS, False)
    assert (bounded.facts["messages"], bounded.facts["is_at_least"]) == (1_000, True)
    assert bounded.waiting == "at least 1,000 messages, 1,000 due"


async def test_uuid_shards_and_their_switches_in_any_spelling(
    database: str, connection: asyncpg.Connection, tmp_path: Path
) -> None:
    shard = uuid.UUID("0A0B0C0D-0000-4000-8000-00000000000F")
    file = tmp_path / "outboxd.toml"
    file.write_text(
        f'dsn = "{database}"\n[scopes.TENANT]\nvalue = 5\n[categories.MEMBER]\nvalue = 1\nscope = "TENANT"\n'
        '[[outbox]]\nname = "uuid"\ntable = "uuid_outbox"\nkey_type = "uuid"\n'
    )
    await write(connection, shard=shard, obj=shard, scope=5, table="uuid_outbox")
    for spelling in (str(shard).upper(), shard.hex):
        await connection.execute("DELETE FROM outboxd.option")
        await connection.execute(
            "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_shards.TENANT', to_jsonb($1::text[]))",
            [spelling],
        )
        done = await run("explain", "TENANT", str(shard).upper(), "--json", config=file)
        assert json.loads(done.stdout)["reason"] == "paused", done.stderr
        assert json.loads(done.stdout)["shard"] == str(shard)


async def test_what_cannot_be_meant_is_a_usage_error(trouble: Trouble) -> None:
    for arguments, words in (
        (["ORGANIZATION_SCOPE", "abc"], "must be an integer (bigint), got 'abc'"),
        (["ORGANISATION_SCOPE", "1"], "did you mean ORGANIZATION_SCOPE?"),
        (["0", "1", "--region", "eu", "--outbox", "region"], "--region does not apply"),
        (["0", "1", "--outbox", "regoin"], "did you mean region?"),
        (["0", "1", "--json", "--sql"], "exclude each other"),
    ):
        done = await run("explain", *arguments, config=trouble.file)
        assert (done.returncode, words in done.stderr, done.stdout) == (2, True, ""), done.stderr
        assert "Traceback" not in done.stderr


async def test_a_locked_table_ends_in_a_word_about_locks(trouble: Trouble, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("outboxd.query.TIMEOUT_S", 0.3)
    async with connected(trouble.dsn) as other, other.transaction():
        await other.execute("LOCK TABLE control_outbox")

        with pytest.raises(Exception, match="timeout") as caught:
            await answer(trouble, "USER_SCOPE", EU_FAILING, "eu")

    assert "outboxd doctor" in getattr(caught.value, "hint", "")


class TestQuery:
    async def test_needs_no_connection(self, trouble: Trouble) -> None:
        done = await run(
            "--dsn", "postgresql://nobody@127.0.0.1:1/none", "explain", "0", "3", "--sql", config=trouble.file
        )

        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.startswith("-- Why does shard 3 of ORGANIZATION_SCOPE in outbox region not move?")
        assert "3 = AUDIT" in done.stdout
        assert "LIMIT" in done.stdout

    @pytest.mark.parametrize(
        "arguments", [["0", FAILING], ["0", PAUSED], ["0", INVISIBLE], ["1", US_PAUSED, "--region", "us"]]
    )
    async def test_says_the_same_in_psql(self, trouble: Trouble, arguments: list[object]) -> None:
        printed = await run("explain", *map(str, arguments), "--sql", config=trouble.file)
        facts = (await explained(trouble, *arguments))["facts"]

        [row] = await rows_of(trouble.dsn, printed.stdout)

        assert list(row) == list(facts)
        assert row | {"asked_at": None} == facts | {"asked_at": None}

    @pytest.mark.parametrize("command", ["explain", "inspect"])
    async def test_the_type_of_the_table_is_left_to_psql(
        self, connection: asyncpg.Connection, database: str, tmp_path: Path, command: str
    ) -> None:
        """An adopted table may have another type than key_type says; `check` warns of that, and all commands work."""
        shard = uuid.UUID("0e5b2a0c-6a0b-4d43-9e9a-0a6f8d1f5c11")
        file = tmp_path / "outboxd.toml"
        file.write_text(
            f'dsn = "{database}"\n[scopes.TENANT]\nvalue = 0\n[categories.MEMBER]\nvalue = 1\nscope = "TENANT"\n'
            '[[outbox]]\nname = "uuid"\ntable = "uuid_outbox"\n'
        )
        await write(connection, shard=shard, obj=shard, table="uuid_outbox")

        printed = await run(command, "TENANT", str(shard), "--sql", config=file)
        told = json.loads((await run(command, "TENANT", str(shard), "--json", config=file)).stdout)

        assert printed.returncode == 0
        assert printed.stderr.startswith("note: the shard identifier must be an integer (bigint), got '0e5b")
        [row] = await rows_of(database, printed.stdout)
        facts = told["facts"] if command == "explain" else told[0]
        assert row | {"asked_at": None} == facts | {"asked_at": None}

    async def test_another_spelling_of_a_number_is_the_same_shard(self, trouble: Trouble) -> None:
        printed = await run("explain", "0", f"00{FAILING}", "--sql", config=trouble.file)

        [row] = await rows_of(trouble.dsn, printed.stdout)

        assert (printed.stderr, row["shard"], len(row["failures"])) == ("", str(FAILING), 1)


class TestPrivileges:
    async def test_a_reader_is_enough(self, trouble: Trouble) -> None:
        async with reading_role(trouble.connection, trouble.dsn, "outbox", "control_outbox") as dsn:
            document = await explained(trouble, 0, FAILING, env={"OUTBOX_DSN": dsn})

        assert document["facts"]["sees_activity"] is False

    async def test_what_other_roles_do_is_not_guessed(self, trouble: Trouble) -> None:
        async with reading_role(trouble.connection, trouble.dsn, "outbox", "control_outbox") as dsn:
            document = await explained(trouble, 0, INVISIBLE, env={"OUTBOX_DSN": dsn})

        details = document["reasons"][1]["details"]
        assert "age not visible" in details[0]
        assert "pg_read_all_stats" in details[1]

    async def test_a_missing_grant_is_named(self, trouble: Trouble) -> None:
        async with reading_role(trouble.connection, trouble.dsn, "control_outbox") as dsn:
            done = await run("explain", "0", "1", config=trouble.file, env={"OUTBOX_DSN": dsn})

        assert done.returncode == 78
        assert "GRANT SELECT ON public.outbox TO" in done.stderr
