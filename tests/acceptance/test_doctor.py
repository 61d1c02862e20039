"""`outboxd doctor` beside real daemons: a healthy one, a stopped one, a pooler in between."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest

from tests.acceptance.servers import PGBOUNCER, pgbouncer
from tests.eventually import eventually

if TYPE_CHECKING:
    from pathlib import Path

    from tests.acceptance.installation import Installation


async def diagnosed(installation: Installation) -> tuple[int | None, dict[str, Any]]:
    done = await installation.run("doctor", "--json")
    assert "Traceback" not in done.stderr
    document: dict[str, Any] = json.loads(done.stdout)
    return done.returncode, document


def errors(document: dict[str, Any]) -> list[str]:
    return [f"{each['check']}: {each['text']}" for each in document["findings"] if each["level"] == "error"]


async def test_a_healthy_system_with_a_running_daemon_is_well(installation: Installation) -> None:
    await installation.insert(range(5))
    async with installation.ready_daemon() as daemon:
        await installation.drained(by=daemon)
        code, document = await diagnosed(installation)

    assert (code, errors(document)) == (0, [])
    assert document["verdict"] in ("all is well", "no errors, 1 warning")  # where the server's autovacuum is off
    assert any(f"drained by pid {daemon.pid} on " in each["text"] for each in document["findings"])


async def test_a_daemon_that_was_killed_is_missed(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        daemon.signal(signal.SIGKILL)
        await daemon.wait()

    async def is_missed() -> bool:
        code, document = await diagnosed(installation)
        return code == 1 and errors(document) == ["daemons: no daemon is running that drains it (silo region)"]

    await eventually(is_missed)
    document = (await diagnosed(installation))[1]
    assert any(f"pid {daemon.pid} on " in e["text"] and "has died" in e["text"] for e in document["findings"])


async def test_a_running_drain_is_no_daemon_and_its_death_is_told(installation: Installation) -> None:
    installation.receive('@receiver("EVENT")\nasync def wait(message):\n    await opened("gate")\n')
    await installation.insert([7])
    async with installation.daemon("drain", "ACCOUNT", "7") as drain:

        async def registered() -> bool:
            return await installation.count("SELECT count(*) FROM outboxd.worker") == 1

        await installation.until(registered, by=drain)
        code, document = await diagnosed(installation)
        assert code == 1
        assert "daemons: no daemon is running that drains it (silo region)" in errors(document)
        assert not any(f"pid {drain.pid}" in each["text"] for each in document["findings"])
        drain.signal(signal.SIGKILL)
        await drain.wait()

    async def is_told() -> bool:
        document = (await diagnosed(installation))[1]
        return any(f"pid {drain.pid} on " in e["text"] and "has died" in e["text"] for e in document["findings"])

    await eventually(is_told)


async def test_a_daemon_that_is_stopped_by_a_signal_does_not_pass_for_a_working_one(installation: Installation) -> None:
    """Its locks and its registration stay with its connection: only its silence gives it away."""
    async with installation.ready_daemon() as daemon:
        daemon.signal(signal.SIGSTOP)

        async def is_noticed() -> bool:
            document = (await diagnosed(installation))[1]
            return any("has not touched its claim session for" in text for text in errors(document))

        await eventually(is_noticed)
        daemon.signal(signal.SIGCONT)


@pytest.mark.skipif(PGBOUNCER is None, reason="there is no pgbouncer")
@pytest.mark.parametrize("lenient", [False, True], ids=["strict", "lenient"])
async def test_a_pooler_in_between_is_found_and_everything_else_is_looked_at_all_the_same(
    installation: Installation, server_folder: Path, lenient: bool
) -> None:
    async with (
        installation.ready_daemon(),
        pgbouncer(server_folder, installation.dsn, lenient=lenient) as through,
    ):
        installation.configure(dsn=through)
        code, document = await diagnosed(installation)

    assert code == 1
    assert [text.partition(":")[0] for text in errors(document)] == ["pooler"]
    assert {"daemons", "lag", "tables"} <= {each["check"] for each in document["findings"]}
