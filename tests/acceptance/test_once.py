"""`outboxd --once`, as cron and a person at a shell run it."""

from __future__ import annotations

import json
import signal
import socket

import pytest

from tests.acceptance.installation import RECORD_ALL, SCOPE, UPDATE, Installation
from tests.eventually import eventually

ASK_FOR_NOW = """\
@receiver("EVENT")
async def later(message):
    record(message)
    raise RetryLater(0)
"""
WRITE = """\
import asyncpg

@receiver("EVENT")
async def write(message):
    record(message)
    connection = await asyncpg.connect({dsn!r})
    await connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier) VALUES (1, $1, 2, 1)",
        {shard},
    )
    await connection.close()
"""
WAIT = """\
@receiver("UPDATE", "EVENT")
async def wait(message):
    record(message, "start")
    await opened("gate")
    record(message)
"""
HANG = """\
@receiver("EVENT")
async def hang(message):
    record(message, "start")
    await asyncio.Event().wait()
"""


async def test_one_table_under_two_names_is_a_wrong_configuration(installation: Installation) -> None:
    twin = '[[outbox]]\nname = "twin"\ntable = "public.outbox"\n'
    installation.outbox += twin
    installation.configure()

    for arguments in (("--once",), (), ("check",)):
        done = await installation.run(*arguments)
        assert done.returncode == 78
        assert "are one table" in done.stdout + done.stderr
        assert "Traceback" not in done.stderr


async def test_a_failed_shard_is_not_tried_again_in_the_run(installation: Installation) -> None:
    """The receiver asks to be called again at once, so the shard stays due."""
    installation.receive(ASK_FOR_NOW)
    ids = await installation.insert([1, 2])

    summary = await installation.once()

    assert sorted(installation.delivered()) == ids
    assert (summary["failed_shards"], summary["remaining_due"]) == (2, 2)


async def test_a_receiver_that_writes_to_its_own_shard_ends_after_ten_drains(installation: Installation) -> None:
    installation.receive(WRITE.format(dsn=installation.dsn, shard="message.shard_identifier"))
    await installation.insert([1])

    process = await installation.run("--once", "--json")

    assert process.returncode == 0
    assert len(installation.delivered()) == 10
    assert json.loads(process.stdout)["remaining_due"] == 1


async def test_max_seconds_ends_a_run_that_would_not_end(installation: Installation) -> None:
    installation.receive(WRITE.format(dsn=installation.dsn, shard="message.shard_identifier + 1"))
    await installation.insert([1])

    process = await installation.run("--once", "--json", "--max-seconds", "0.5")

    assert process.returncode == 0
    summary = json.loads(process.stdout)
    assert summary["remaining_due"] == await installation.count() == 1
    assert summary["delivered"] == len(installation.delivered())


async def test_what_is_not_due_stays(installation: Installation) -> None:
    await installation.insert([1])
    await installation.connection.execute("UPDATE outbox SET scheduled_for = now() + interval '1 hour'")

    summary = await installation.once()

    assert (summary["delivered"], summary["remaining_due"]) == (0, 0)
    assert await installation.count() == 1


async def test_a_second_run_on_the_same_configuration_says_so_and_exits_0(installation: Installation) -> None:
    installation.receive(WAIT)
    await installation.insert([1])
    async with installation.daemon("--once", "--json") as first:
        await eventually(lambda: installation.delivered("start"))

        second = await installation.run("--once")
        quiet = await installation.run("--once", "--quiet")

        assert (second.returncode, quiet.returncode) == (0, 0)
        assert "another --once" in second.stderr
        assert quiet.stdout + quiet.stderr == ""
        installation.open("gate")
        assert await first.wait() == 0
    assert len(installation.delivered()) == 1


async def test_a_shard_that_a_daemon_has_claimed_is_not_a_failure(installation: Installation) -> None:
    installation.receive(WAIT)
    await installation.insert([1])
    async with installation.ready_daemon():
        await eventually(lambda: installation.delivered("start"))
        ids = await installation.insert([2])
        installation.receive(RECORD_ALL)

        process = await installation.run("--once", "--json")

        assert process.returncode == 0
        assert json.loads(process.stdout)["failed_shards"] == 0
    assert set(installation.delivered()) <= set(ids)
    assert len(installation.delivered("start")) <= 2


async def test_quiet_prints_nothing_when_all_went_well(installation: Installation) -> None:
    await installation.insert([1, 2])

    process = await installation.run("--once", "--quiet")

    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")
    assert await installation.count() == 0


async def test_quiet_prints_what_failed(installation: Installation) -> None:
    installation.receive(ASK_FOR_NOW)
    await installation.insert([1])

    process = await installation.run("--once", "--quiet")

    assert process.returncode == 1
    assert "1 failed" in process.stdout


@pytest.mark.parametrize(
    "statement",
    [
        f"INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier) VALUES ('shard', {SCOPE}, '1')",
        "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_shards.ACCOUNT', '[1]')",
    ],
    ids=["pause", "option"],
)
async def test_a_paused_shard_is_counted_and_left_alone(installation: Installation, statement: str) -> None:
    await installation.connection.execute(statement)
    paused = await installation.insert([1], objects=range(3))
    await installation.insert([2])

    process = await installation.run("--once", "--json")

    summary = json.loads(process.stdout)
    assert process.returncode == 0
    assert (summary["delivered"], summary["skipped_shards"], summary["failed_shards"]) == (1, 1, 0)
    assert summary["remaining_due"] == 1
    assert await installation.ids() == set(paused)
    assert await installation.count("SELECT count(*) FROM outboxd.failure") == 0


async def test_a_switched_off_category_is_left_alone(installation: Installation) -> None:
    await installation.connection.execute(
        "INSERT INTO outboxd.option (key, value) VALUES ('outbox.disabled_categories', '[\"EVENT\"]')"
    )
    off = await installation.insert([1, 2])
    await installation.insert([2, 3], category=UPDATE)

    process = await installation.run("--once", "--json")

    assert process.returncode == 0
    assert json.loads(process.stdout)["delivered"] == 2
    assert await installation.ids() == set(off)


async def test_a_buried_message_is_not_a_failure(installation: Installation) -> None:
    installation.receive('@receiver("EVENT")\nasync def drop(message):\n    raise Discard("unwanted")\n')
    await installation.insert([1])

    process = await installation.run("--once", "--json")

    summary = json.loads(process.stdout)
    assert process.returncode == 0
    assert (summary["buried"], summary["delivered"], summary["failed_shards"]) == (1, 0, 0)
    letters = await installation.connection.fetch("SELECT reason, attempts FROM outboxd.dead_letter")
    assert [tuple(letter) for letter in letters] == [("unwanted", 1)]


async def test_it_opens_no_http_listener(installation: Installation) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        installation.configure()
        installation.config.write_text(
            installation.config.read_text().replace('listen = ""', f'listen = "127.0.0.1:{taken.getsockname()[1]}"')
        )
        process = await installation.run("--once", "--quiet")

    assert (process.returncode, process.stdout, process.stderr) == (0, "", "")


async def test_nothing_is_left_behind(installation: Installation) -> None:
    await installation.insert([1])

    await installation.once()

    assert await installation.left_behind() == []


async def test_sigterm_ends_it_after_the_delivery_under_way(installation: Installation) -> None:
    installation.receive(WAIT)
    installation.drain["concurrency"] = 1
    installation.configure()
    ids = await installation.insert([1], objects=range(5))
    async with installation.daemon("--once", "--json") as process:
        await eventually(lambda: installation.delivered("start"))
        process.signal(signal.SIGTERM)
        installation.open("gate")
        await process.wait()

    assert installation.delivered() == installation.delivered("start")
    assert await installation.ids() == set(ids) - set(installation.delivered())
    assert await installation.left_behind() == []


async def test_a_second_signal_ends_it_at_once(installation: Installation) -> None:
    installation.receive(HANG)
    ids = await installation.insert([1])
    async with installation.daemon("--once", "--json") as process:
        await eventually(lambda: installation.delivered("start"))
        process.signal(signal.SIGTERM)
        process.signal(signal.SIGINT)  # two of one kind may arrive as one
        code = await process.wait()

    assert code == 1
    assert process.events("daemon.stopping_hard")[0]["reason"] == "second signal"
    assert await installation.ids() == set(ids)
    assert await installation.left_behind() == []


async def test_a_run_that_goes_well_is_quiet_about_what_is_switched_off(installation: Installation) -> None:
    await installation.connection.execute(
        "INSERT INTO outboxd.pause (kind, category, reason) VALUES ('category', $1, 'bad deploy')", UPDATE
    )
    await installation.insert([1], category=UPDATE)

    quiet = await installation.run("--once", "--quiet")
    told = await installation.run("--once", "--json")

    assert (quiet.returncode, quiet.stdout, quiet.stderr) == (0, "", "")
    assert json.loads(told.stdout)["skipped_shards"] == 1
