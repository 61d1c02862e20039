"""Receivers that block, sleep, hang or misbehave must harm nobody but themselves."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.acceptance.installation import Installation

BLOCK = """\
@receiver("EVENT")
async def compute_for_long(message):
    record(message, "start")
    wait_until_opened("gate")
    record(message)
"""
WAIT_IN_THREAD = """\
@receiver("EVENT")
def import_file(message):
    record(message, "start")
    if message.shard_identifier == 0:
        wait_until_opened("gate")
    record(message)
"""
BAD_SHARD = 0


async def test_a_receiver_that_blocks_the_event_loop_is_named(installation: Installation) -> None:
    installation.receive(BLOCK)
    await installation.insert([1])
    async with installation.ready_daemon() as daemon:
        warning = await daemon.wait_for_event("loop.blocked")
        installation.open("gate")
        await installation.drained(by=daemon)

    assert warning["level"] == "warning"
    assert warning["receiver"] == "receivers.compute_for_long"
    assert "receivers.py" in warning["at"]
    assert len(daemon.events("loop.blocked")) == 1


async def test_a_receiver_that_blocks_is_named_by_once_too(installation: Installation) -> None:
    installation.receive(BLOCK)
    await installation.insert([1])
    async with installation.daemon("--once") as process:
        warning = await process.wait_for_event("loop.blocked")
        installation.open("gate")
        assert await process.wait() == 0

    assert warning["receiver"] == "receivers.compute_for_long"


async def test_a_plain_function_that_waits_does_not_hold_up_the_others(installation: Installation) -> None:
    installation.receive(WAIT_IN_THREAD)
    stuck = await installation.insert([BAD_SHARD])
    others = await installation.insert(range(1, 50), objects=range(4))
    async with installation.ready_daemon() as daemon:
        await installation.until(lambda: set(installation.delivered()) == set(others), by=daemon)
        assert await installation.ids() >= set(stuck)
        installation.open("gate")
        await installation.drained(by=daemon)

    assert daemon.events("loop.blocked") == []


async def test_as_many_plain_functions_run_at_once_as_the_concurrency_allows(installation: Installation) -> None:
    installation.receive(WAIT_IN_THREAD.replace("message.shard_identifier == 0", "True"))
    installation.drain["concurrency"] = 60  # more than anyio's own limit
    installation.configure()
    await installation.insert(range(60))
    async with installation.ready_daemon() as daemon:
        await installation.until(lambda: len(installation.delivered("start")) == 60, by=daemon)
        installation.open("gate")
        await installation.drained(by=daemon)


@pytest.mark.parametrize(
    "misdeed",
    [
        'raise ValueError("no")',
        "raise SystemExit(3)",
        "raise KeyboardInterrupt",
        "raise asyncio.CancelledError",
        "asyncio.current_task().cancel(); await asyncio.sleep(1)",
        "raise BaseExceptionGroup('all', [SystemExit(1)])",
        "await asyncio.Event().wait()",
        "raise StopAsyncIteration",
        "raise GeneratorExit",
    ],
)
async def test_whatever_a_receiver_does_only_its_own_shard_waits(installation: Installation, misdeed: str) -> None:
    installation.receive(
        '@receiver("EVENT")\n'
        "async def act(message):\n"
        "    if message.shard_identifier == 0:\n"
        f"        {misdeed}\n"
        "    record(message)\n"
    )
    installation.drain["receiver_timeout_s"] = 0.3
    installation.configure()
    failing = await installation.insert([BAD_SHARD])
    others = await installation.insert(range(1, 20), objects=range(3))
    async with installation.ready_daemon() as daemon:
        await daemon.wait_for_event("shard.rescheduled")
        await installation.until(lambda: set(installation.delivered()) == set(others), by=daemon)
        assert daemon.returncode is None

    assert await installation.ids() == set(failing)
    failures = await installation.connection.fetch("SELECT message_id, attempts FROM outboxd.failure")
    assert [tuple(row) for row in failures] == [(failing[0], 1)]


async def test_what_receivers_print_is_theirs(installation: Installation) -> None:
    """A daemon's own standard output stays empty, but a receiver may write there."""
    installation.receive('@receiver("EVENT")\nasync def say(message):\n    print("hello", flush=True)\n')
    await installation.insert([1])
    async with installation.ready_daemon() as daemon:
        await installation.drained(by=daemon)

    assert daemon.stdout == "hello\n"


async def test_what_receivers_print_does_not_spoil_the_summary(installation: Installation) -> None:
    installation.receive('@receiver("EVENT")\nasync def say(message):\n    print("hello", flush=True)\n')
    await installation.insert([1])

    process = await installation.run("--once", "--json")

    assert process.returncode == 0
    assert [line[:1] for line in process.stdout_lines] == ["{"]
    assert "hello" in process.stderr
