"""SIGKILL, and messages that kill the process that delivers them."""

from __future__ import annotations

import contextlib
import signal
from collections import Counter
from functools import partial
from typing import TYPE_CHECKING

from tests.eventually import eventually

if TYPE_CHECKING:
    from tests.acceptance.installation import Installation
    from tests.processes import Outboxd

WAIT_AT_GATE = """\
@receiver("EVENT")
async def wait(message):
    record(message, "start")
    await opened("gate")
    record(message)
"""
KILL = """\
@receiver("UPDATE", "EVENT")
async def kill(message):
    if message.object_identifier == 666:
        record(message, "kill")
        os._exit(1)
    record(message)
"""
KILLER_SHARD = 13


async def test_after_sigkill_everything_is_delivered_by_the_next_start(installation: Installation) -> None:
    installation.receive(WAIT_AT_GATE)
    ids = await installation.insert(range(20), objects=range(3))
    async with installation.ready_daemon() as daemon:
        await eventually(lambda: len(installation.delivered("start")) == 5)
        daemon.signal(signal.SIGKILL)
        assert await daemon.wait() == -signal.SIGKILL
    assert await installation.ids() == set(ids)

    installation.open("gate")
    async with installation.ready_daemon() as daemon:
        await installation.drained(by=daemon)

    assert set(installation.delivered()) == set(ids)
    assert max(Counter(installation.delivered("start")).values()) <= 2


async def test_sigkill_under_load_loses_nothing_and_repeats_what_was_under_way(installation: Installation) -> None:
    installation.receive(
        '@receiver("EVENT")\nasync def work(message):\n    await asyncio.sleep(0.001)\n    record(message)\n'
    )
    ids = await installation.insert(range(100), objects=range(6))
    async with installation.ready_daemon() as daemon:
        await eventually(lambda: len(installation.delivered()) > 200)
        daemon.signal(signal.SIGKILL)
        await daemon.wait()
    remaining = await installation.ids()
    assert set(ids) - remaining <= set(installation.delivered())

    await installation.once()

    assert set(installation.delivered()) == set(ids)
    assert await installation.count() == 0


async def test_a_death_is_marked_and_makes_the_next_daemon_count_ahead(installation: Installation) -> None:
    """While the receiver runs, its failure is already written: dying would need no witness."""
    installation.receive(WAIT_AT_GATE)
    await installation.insert([1])
    async with installation.ready_daemon() as first:
        await eventually(lambda: installation.delivered("start"))
        pid = first.pid
        first.signal(signal.SIGKILL)
        await first.wait()

    async with installation.ready_daemon() as second:
        await eventually(lambda: len(installation.delivered("start")) == 2)
        assert (await second.wait_for_event("worker.died"))["pid"] == pid
        assert (await second.wait_for_event("drain.prepared_mode"))["on"] is True
        dead = await installation.connection.fetch("SELECT pid FROM outboxd.worker WHERE died_at IS NOT NULL")
        assert [row["pid"] for row in dead] == [pid]
        failure = await installation.connection.fetchrow("SELECT attempts, last_error FROM outboxd.failure")
        assert failure is not None
        assert failure["attempts"] == 1
        assert "died" in failure["last_error"]
        assert await installation.count("SELECT count(*) FROM outbox WHERE scheduled_for > now()") == 1
        installation.open("gate")
        await installation.drained(by=second)

    assert await installation.count("SELECT count(*) FROM outboxd.failure") == 0


async def test_a_clean_stop_is_no_death(installation: Installation) -> None:
    async with installation.ready_daemon() as first:
        first.signal(signal.SIGTERM)
        await first.wait()

    async with installation.ready_daemon() as second:
        second.signal(signal.SIGTERM)
        await second.wait()

    assert second.events("worker.died") == []
    assert second.events("drain.prepared_mode") == []


async def test_a_living_daemon_notices_the_death_of_another_one(installation: Installation) -> None:
    async with installation.ready_daemon() as survivor, installation.ready_daemon() as victim:
        victim.signal(signal.SIGKILL)
        await victim.wait()

        died = await survivor.wait_for_event("worker.died")

        assert died["pid"] == victim.pid


def done_or_dead(installation: Installation, daemon: Outboxd, ids: set[int]) -> bool:
    return daemon.returncode is not None or ids <= set(installation.delivered())


async def test_a_message_that_kills_the_process_holds_up_only_its_own_shard(installation: Installation) -> None:
    """Restarted ten times, as a service manager would, with new work before each start."""
    installation.receive(KILL)
    killers = await installation.insert([KILLER_SHARD], objects=[666])
    behind = await installation.insert([KILLER_SHARD], objects=[1])
    others: set[int] = set()
    deaths = starts = 0
    while starts < 10 or not others <= set(installation.delivered()):
        starts += 1
        if starts <= 10:
            others |= set(await installation.insert([1, 2, 3], objects=range(4)))
        async with installation.daemon() as daemon:
            await installation.until(partial(done_or_dead, installation, daemon, others), by=daemon)
            with contextlib.suppress(ProcessLookupError):
                daemon.signal(signal.SIGTERM)
            deaths += await daemon.wait() != 0

    assert await installation.ids() == {*killers, *behind}
    failures = await installation.connection.fetch("SELECT * FROM outboxd.failure")
    kills = len(installation.delivered("kill"))
    assert kills == deaths
    # Nobody had died before the first delivery: it was not counted ahead.
    assert [(row["message_id"], row["attempts"]) for row in failures] == [(killers[0], kills - 1)]
    delay = await installation.connection.fetchval(
        "SELECT scheduled_for - scheduled_from FROM outbox WHERE id = $1", killers[0]
    )
    assert delay.total_seconds() == 2.0 ** (kills - 1)
    assert await installation.count("SELECT count(*) FROM outbox WHERE scheduled_for <= now()") >= len(behind)
    # Who was under way beside it is counted too, but must not go down with it again and again.
    assert max(line["attempt"] for line in installation.deliveries()) <= 3


async def test_a_message_that_kills_is_buried_after_its_last_attempt(installation: Installation) -> None:
    installation.receive(KILL)
    installation.categories += "max_attempts = 1\n"
    installation.configure()
    killers = await installation.insert([KILLER_SHARD], objects=[666])
    behind = await installation.insert([KILLER_SHARD], objects=[1])

    for _ in range(10):
        await installation.run("--once")
        # Its backoff is over: an operator's, or time's, doing.
        await installation.connection.execute("UPDATE outbox SET scheduled_for = now(), scheduled_from = now()")
        await installation.connection.execute(
            "UPDATE outboxd.failure SET last_failed_at = last_failed_at - interval '1 day'"
        )
        if not await installation.count():
            break

    assert installation.delivered() == behind
    buried = await installation.connection.fetch("SELECT message_id, reason FROM outboxd.dead_letter")
    assert [row["message_id"] for row in buried] == killers
    assert "died" in buried[0]["reason"]
    assert len(installation.delivered("kill")) == 2
