"""SIGHUP: what takes effect at once, what is refused, what needs a restart."""

from __future__ import annotations

import signal

import pytest

from tests.acceptance.installation import CONFIGURATION, OUTBOX, UPDATE, Installation
from tests.eventually import eventually


async def test_a_shorter_poll_interval_takes_effect(installation: Installation) -> None:
    installation.drain["poll_interval_s"] = 3600
    installation.configure()
    await installation.insert([1])
    async with installation.ready_daemon() as daemon:
        await installation.drained(by=daemon)
        await installation.insert([1])
        installation.drain["poll_interval_s"] = 0.05
        installation.configure()

        daemon.signal(signal.SIGHUP)
        await daemon.wait_for_event("config.reloaded")

        await installation.drained(by=daemon)


async def test_a_category_that_no_longer_coalesces_takes_effect(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        await installation.insert([1, 1, 1], category=UPDATE)
        await installation.drained(by=daemon)
        assert [line["coalesced"] for line in installation.deliveries()] == [3]
        installation.categories = CONFIGURATION.replace("value = 1\nscope", "value = 1\ncoalesce = false\nscope")
        installation.configure()

        daemon.signal(signal.SIGHUP)
        reloaded = await daemon.wait_for_event("config.reloaded")
        await installation.insert([1, 1, 1], category=UPDATE)
        await installation.drained(by=daemon)

    assert reloaded["source"] == str(installation.config)
    assert [line["coalesced"] for line in installation.deliveries()] == [3, 1, 1, 1]


async def test_more_concurrency_takes_effect(installation: Installation) -> None:
    installation.receive(
        '@receiver("EVENT")\nasync def wait(message):\n    record(message, "start")\n    await opened("gate")\n'
    )
    installation.drain["concurrency"] = 1
    installation.configure()
    async with installation.ready_daemon() as daemon:
        await installation.insert(range(6))
        await eventually(lambda: len(installation.delivered("start")) == 1)
        installation.drain["concurrency"] = 4
        installation.configure()

        daemon.signal(signal.SIGHUP)

        await installation.until(lambda: len(installation.delivered("start")) == 4, by=daemon)


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("[drain]\npoll_intervall_s = 1\n", "did you mean poll_interval_s"),
        ("[drain\n", "TOML"),
        (None, "there is no file"),
    ],
    ids=["unknown key", "no TOML", "no file"],
)
async def test_a_bad_file_is_refused_and_the_old_one_stays(
    installation: Installation, text: str | None, shown: str
) -> None:
    async with installation.ready_daemon() as daemon:
        if text is None:
            installation.config.unlink()
        else:
            installation.config.write_text(text)

        daemon.signal(signal.SIGHUP)
        refused = await daemon.wait_for_event("config.refused")
        await installation.insert([1])
        await installation.drained(by=daemon)

        assert shown in refused["error"]
        assert daemon.events("config.reloaded") == []
        installation.configure()
        daemon.signal(signal.SIGHUP)
        await daemon.wait_for_event("config.reloaded")


async def test_what_needs_a_restart_is_named_and_the_rest_takes_effect(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        installation.outbox = OUTBOX.replace('"main"', '"renamed"')
        installation.drain["poll_interval_s"] = 0.05
        installation.configure(dsn=f"{installation.dsn}&application_name=x")
        text = installation.config.read_text()
        installation.config.write_text(text.replace('modules = ["receivers"]', 'modules = ["others"]'))

        daemon.signal(signal.SIGHUP)
        needed = await daemon.wait_for_event("config.restart_needed")
        await installation.insert([1])
        await installation.drained(by=daemon)

    assert set(needed["keys"]) == {"dsn", "outbox", "receivers.modules"}


async def test_many_reloads_under_load_lose_nothing(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        ids = []
        for number in range(1, 11):
            ids += await installation.insert(range(50), objects=range(4))
            installation.drain["concurrency"] = 1 + number % 7
            installation.configure()
            daemon.signal(signal.SIGHUP)
            await daemon.wait_for_event("config.reloaded", count=number)
        await installation.drained(by=daemon)
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0

    assert sorted(installation.delivered()) == sorted(ids)
