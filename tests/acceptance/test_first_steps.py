"""The first five minutes, as the README tells them; and every exit code that a script may meet."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any

import pytest

from tests import processes
from tests.acceptance.installation import RECORD_ALL, Installation
from tests.acceptance.servers import free_port

if TYPE_CHECKING:
    from pathlib import Path

SUMMARY_KEYS = {
    "delivered",
    "coalesced",
    "failed_shards",
    "skipped_shards",
    "remaining_due",
    "backfilled",
    "buried",
    "seconds",
}
FAIL = """\
@receiver("EVENT")
async def refuse(message):
    raise ValueError("not today")
"""


async def test_from_init_to_the_first_delivery(tmp_path: Path, database: str) -> None:
    here: dict[str, Any] = {"cwd": tmp_path, "env": {"OUTBOX_DSN": database}}

    init = await processes.run("init", **here)
    migrate = await processes.run("migrate", **here)
    again = await processes.run("migrate", **here)
    enqueue = await processes.run("enqueue", "ACCOUNT_UPDATE", "--shard", "7", "--object", "8", **here)
    once = await processes.run("--once", "--json", **here)

    assert [p.returncode for p in (init, migrate, again, enqueue, once)] == [0] * 5, once.stderr
    assert "created" in migrate.stdout
    assert "nothing to do" in again.stdout
    assert enqueue.stdout == "1\n"
    assert "account 8 changed: None" in once.stderr
    summary = json.loads(once.stdout)
    assert set(summary) == SUMMARY_KEYS
    assert (summary["delivered"], summary["coalesced"], summary["remaining_due"]) == (1, 0, 0)


async def test_the_next_steps_that_init_prints_work_as_they_stand(tmp_path: Path, database: str) -> None:
    here: dict[str, Any] = {"cwd": tmp_path, "env": {"OUTBOX_DSN": database}}
    init = await processes.run("init", **here)

    commands = re.findall(r"^  outboxd ([^#\n]+)", init.stdout, re.MULTILINE)

    assert len(commands) == 3
    for command in commands:
        done = await processes.run(*command.split(), **here)
        assert done.returncode == 0, done.stderr


async def test_the_summary_counts_what_was_done(installation: Installation) -> None:
    for _ in range(3):
        await installation.insert([1, 2], category=1)

    summary = await installation.once()

    seconds = summary.pop("seconds")
    assert isinstance(seconds, float)
    assert summary == {
        "delivered": 2,
        "coalesced": 4,
        "failed_shards": 0,
        "skipped_shards": 0,
        "remaining_due": 0,
        "backfilled": {},
        "buried": 0,
    }


async def test_without_json_the_summary_is_for_people(installation: Installation) -> None:
    await installation.insert([1])

    process = await installation.run("--once")

    assert process.returncode == 0
    assert "delivered 1" in process.stdout


# --- exit codes --------------------------------------------------------------------------------------------


async def test_exit_1_a_receiver_fails_and_its_message_stays(installation: Installation) -> None:
    installation.receive(FAIL)
    ids = await installation.insert([1])

    process = await installation.run("--once", "--json")

    assert process.returncode == 1
    assert json.loads(process.stdout)["failed_shards"] == 1
    assert await installation.ids() == set(ids)
    error = await installation.connection.fetchval("SELECT last_error FROM outboxd.failure")
    assert "not today" in error


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--onse"], "--once"),
        (["--once", "enqueue"], "--once"),
        (["enqueue", "EVEMT", "--shard", "1", "--object", "1"], "did you mean EVENT"),
        (["enqueue", "EVENT", "--object", "1"], "--shard"),
        (["enqueue", "EVENT", "--shard", "one", "--object", "1"], "--shard"),
        (["enqueue", "EVENT", "--shard", "1", "--object", "1", "--outbox", "mein"], "main"),
        (["enqueue", "EVENT", "--shard", "1", "--object", "1", "--payload", "{"], "--payload is not JSON"),
    ],
)
async def test_exit_2_usage(installation: Installation, arguments: list[str], shown: str) -> None:
    process = await installation.run(*arguments)

    assert process.returncode == 2, process.stderr
    assert shown in process.stderr
    assert "Traceback" not in process.stderr
    assert process.stdout == ""
    assert await installation.count() == 0


@pytest.mark.parametrize(
    "arguments",
    [["--once"], ["--once", "--quiet"], ["migrate"], ["check"], ["enqueue", "EVENT", "--shard", "1", "--object", "1"]],
    ids=lambda arguments: " ".join(arguments[:2]),
)
async def test_exit_69_nobody_answers(bare: Installation, arguments: list[str]) -> None:
    bare.configure(dsn=f"postgresql://nobody@127.0.0.1:{free_port()}/nothing")

    process = await bare.run(*arguments)

    assert process.returncode == 69, process.stderr
    assert "Traceback" not in process.stderr


async def test_exit_78_not_migrated(bare: Installation) -> None:
    process = await bare.run("--once")

    assert process.returncode == 78
    assert "outboxd migrate" in process.stderr


@pytest.mark.parametrize(
    ("harm", "shown"),
    [
        ("DROP INDEX outbox_scheduled_for_shard_scope_shard_identifier_idx", "scheduled_for"),
        ("DROP INDEX outbox_shard_scope_shard_identifier_id_idx", "shard_identifier"),
        ("ALTER TABLE outbox DROP COLUMN date_added", "date_added"),
        ("ALTER TABLE outbox ALTER shard_identifier DROP NOT NULL", "shard_identifier"),
        ("DROP TABLE outbox", "outbox"),
        ("DROP TABLE outbox; CREATE TABLE outbox (id int PRIMARY KEY, note text)", "shard_scope"),
        ("DROP TABLE outbox; CREATE VIEW outbox AS SELECT 1 AS id", "view"),
        ("DROP SCHEMA outboxd CASCADE", "migrate"),
    ],
    ids=["find index", "read index", "column", "not null", "table", "wrong table", "view", "schema"],
)
async def test_exit_78_the_table_is_not_as_it_must_be(installation: Installation, harm: str, shown: str) -> None:
    await installation.connection.execute(harm)

    process = await installation.run("--once")

    assert process.returncode == 78, process.stdout + process.stderr
    assert shown in process.stderr
    assert "Traceback" not in process.stderr


@pytest.mark.parametrize(
    ("arguments", "change", "shown"),
    [
        ([], "[drain]\nconcurency = 3\n", "did you mean concurrency"),
        ([], "[drain]\nconcurrency = 0\n", "concurrency"),
        ([], "[[outbox]\n", "not valid TOML"),
        ([], '[receivers]\nmodules = ["receivers"]\n', "outbox"),
        (["--once"], "[drain]\nconcurency = 3\n", "did you mean concurrency"),
        (["--once"], '[receivers]\nmodules = ["receivers"]\n', "outbox"),
    ],
    ids=["unknown key", "bad value", "no TOML", "no outbox", "once: unknown key", "once: no outbox"],
)
async def test_exit_78_bad_configuration(bare: Installation, arguments: list[str], change: str, shown: str) -> None:
    bare.config.write_text(change)

    process = await bare.run(*arguments, env={"OUTBOX_DSN": bare.dsn})

    assert process.returncode == 78
    assert shown in process.stderr
    assert "Traceback" not in process.stderr


async def test_exit_78_another_silo_mode_has_no_outbox(installation: Installation) -> None:
    process = await installation.run("--silo-mode", "control", "--once")

    assert process.returncode == 78
    assert "control" in process.stderr


# --- receiver modules --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "code", "error"),
    [
        ([], "import notthere\n", "ModuleNotFoundError"),
        ([], "\n\nraise RuntimeError('no settings')\n", "RuntimeError: no settings"),
        ([], "def broken(:\n", "SyntaxError"),
        (["--once"], "import sys\nsys.exit('go away')\n", "SystemExit"),
    ],
    ids=["missing import", "own error", "syntax", "exit"],
)
async def test_a_module_that_does_not_import_exits_78_with_its_own_error_and_place(
    installation: Installation, arguments: list[str], code: str, error: str
) -> None:
    (installation.folder / "receivers.py").write_text(code)

    process = await installation.run(*arguments)

    assert process.returncode == 78
    assert error in process.stderr
    assert "receivers.py" in process.stderr
    assert "Traceback" not in process.stderr
    assert "registry.py" not in process.stderr


@pytest.mark.parametrize("arguments", [[], ["--once"]], ids=["daemon", "once"])
async def test_a_missing_module_exits_78_and_is_named(installation: Installation, arguments: list[str]) -> None:
    (installation.folder / "receivers.py").unlink()

    process = await installation.run(*arguments)

    assert process.returncode == 78
    assert "receivers" in process.stderr
    assert "Traceback" not in process.stderr


async def test_a_receiver_of_an_unknown_category_exits_78_and_names_the_nearest(installation: Installation) -> None:
    installation.receive(RECORD_ALL.replace('"UPDATE", ', '"UPDAET", '))

    process = await installation.run()

    assert process.returncode == 78
    assert "did you mean UPDATE" in process.stderr


async def test_without_any_receiver_the_daemon_warns_loudly(installation: Installation) -> None:
    installation.receive("")

    async with installation.ready_daemon() as daemon:
        warning = await daemon.wait_for_event("receivers.none")

    assert warning["level"] == "warning"
    assert "no receiver" in warning["hint"]


async def test_without_a_receiver_a_message_fails_and_stays(installation: Installation) -> None:
    installation.receive("")
    ids = await installation.insert([1])

    process = await installation.run("--once")

    assert process.returncode == 1
    assert process.events("receivers.none")
    assert await installation.ids() == set(ids)
