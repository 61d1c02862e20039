"""Health of a running daemon, as probes and people ask for it, and where it listens."""

from __future__ import annotations

import json
import re
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web

from tests.acceptance.answers import address_of, ask, ready, reasons, scrape, value
from tests.acceptance.servers import ComingAndGoing, free_port
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    from tests.acceptance.installation import Installation

WAIT = """\
@receiver("EVENT")
async def wait(message):
    record(message, "start")
    await opened("gate")
    record(message)
"""

# --- alive and ready ---------------------------------------------------------------------------------------


async def test_it_is_alive_and_not_ready_while_the_database_is_away_and_ready_when_it_has_come(
    bare: Installation, server_folder: Path
) -> None:
    server = ComingAndGoing(server_folder)
    bare.dsn = server.dsn
    bare.configure()
    async with bare.daemon() as daemon:
        address = await address_of(daemon)
        await daemon.wait_for_event("daemon.waiting")
        assert (await ask(address, "/healthz")).status == 200
        [reason] = await reasons(address)
        assert "the database cannot be reached, or is not migrated" in reason
        assert value(await scrape(address), "outboxd_ready") == 0

        async with server.started() as bare.connection:
            await bare.migrate()
            await daemon.wait_for_event("daemon.ready")
            await ready(address)
            assert value(await scrape(address), "outboxd_ready") == 1
            daemon.signal(signal.SIGTERM)
            assert await daemon.wait() == 0


async def test_it_is_not_ready_once_it_stops_and_answers_until_the_last_delivery_is_over(
    installation: Installation,
) -> None:
    installation.receive(WAIT)
    await installation.insert([1])
    async with installation.ready_daemon() as daemon:
        address = await address_of(daemon)
        await installation.until(lambda: bool(installation.delivered("start")), by=daemon)
        daemon.signal(signal.SIGTERM)
        await daemon.wait_for_event("daemon.stopping")

        assert await reasons(address) == ["it is stopping"]
        assert (await ask(address, "/healthz")).text == "ok\n"
        installation.open("gate")
        assert await daemon.wait() == 0


@pytest.mark.parametrize(
    ("method", "path", "status"), [("GET", "/", 404), ("POST", "/readyz", 405), ("HEAD", "/readyz", 200)]
)
async def test_nothing_else_is_answered(installation: Installation, method: str, path: str, status: int) -> None:
    async with installation.ready_daemon() as daemon:
        address = await address_of(daemon)
        await ready(address)
        async with aiohttp.ClientSession() as session, session.request(method, f"http://{address}{path}") as response:
            assert response.status == status


# --- where it listens --------------------------------------------------------------------------------------


@pytest.fixture
def taken() -> Iterable[str]:
    """An address that somebody listens on."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        yield f"127.0.0.1:{listener.getsockname()[1]}"


async def test_a_port_in_use_ends_it_with_78_and_says_what_to_do(installation: Installation, taken: str) -> None:
    await installation.insert([1])
    process = await installation.run(env={"OUTBOX_HTTP_LISTEN": taken})

    assert process.returncode == 78
    assert f"http.listen: cannot listen on {taken}: address already in use" in process.stderr
    assert "OUTBOX_HTTP_LISTEN" in process.stderr
    assert "Traceback" not in process.stderr
    assert installation.delivered() == []


async def test_a_port_in_use_is_only_a_warning_where_http_is_optional(installation: Installation, taken: str) -> None:
    text = installation.config.read_text()
    installation.config.write_text(text.replace("[http]\n", "[http]\noptional = true\n"))
    ids = await installation.insert([1])
    async with installation.ready_daemon(env={"OUTBOX_HTTP_LISTEN": taken}) as daemon:
        warning = await daemon.wait_for_event("http.unavailable")
        assert taken in warning["error"]
        await installation.drained(by=daemon)
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0

    assert installation.delivered() == ids


async def test_an_address_of_another_machine_ends_it_with_78(installation: Installation) -> None:
    process = await installation.run(env={"OUTBOX_HTTP_LISTEN": "192.0.2.1:9464"})

    assert process.returncode == 78
    assert "cannot listen on 192.0.2.1:9464" in process.stderr


async def test_a_host_that_is_no_name_is_a_wrong_configuration(installation: Installation) -> None:
    wrong = {"OUTBOX_HTTP_LISTEN": "a..b:9464"}
    for arguments in ((), ("health",)):
        done = await installation.run(*arguments, env=wrong)
        assert done.returncode == 78, done.stderr
        assert "http.listen: " in done.stderr
        assert "a..b:9464" in done.stderr
    text = installation.config.read_text()
    installation.config.write_text(text.replace("[http]\n", "[http]\noptional = true\n"))
    async with installation.ready_daemon(env=wrong) as daemon:
        await daemon.wait_for_event("http.unavailable")


async def test_with_listen_empty_nothing_listens(installation: Installation) -> None:
    async with installation.ready_daemon(env={"OUTBOX_HTTP_LISTEN": ""}) as daemon:
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0

    assert daemon.events("http.listening") == []


# --- outboxd health ----------------------------------------------------------------------------------------


async def health(installation: Installation, address: str, *arguments: str) -> tuple[int | None, str, str]:
    process = await installation.run("health", *arguments, env={"OUTBOX_HTTP_LISTEN": address})
    assert "Traceback" not in process.stderr
    return process.returncode, process.stdout, process.stderr


async def test_health_says_ready_and_alive(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        address = await address_of(daemon)
        await ready(address)

        assert await health(installation, address) == (0, "ready\n", "")
        assert await health(installation, address, "--live") == (0, "alive\n", "")
        code, document, _ = await health(installation, address, "--json")
        assert (code, json.loads(document)) == (0, {"healthy": True, "reasons": []})


async def test_health_says_why_it_is_not_ready_though_it_lives(bare: Installation) -> None:
    async with bare.daemon() as daemon:  # not migrated
        address = await address_of(daemon)

        code, text, _ = await health(bare, address)
        assert code == 1
        assert re.fullmatch(r"not ready\n  it waits: .*schema outboxd.*\n", text)
        code, document, _ = await health(bare, address, "--json")
        assert (code, json.loads(document)["healthy"]) == (1, False)
        assert (await health(bare, address, "--live"))[:2] == (0, "alive\n")


@pytest.mark.parametrize("arguments", [[], ["--live"], ["--json"]], ids=lambda arguments: " ".join(arguments))
async def test_health_ends_with_69_when_nobody_answers(installation: Installation, arguments: list[str]) -> None:
    code, document, log = await health(installation, f"127.0.0.1:{free_port()}", *arguments)

    assert (code, document) == (69, "")
    assert "no daemon answers" in log


async def test_health_ends_with_78_where_nothing_is_to_listen(installation: Installation) -> None:
    code, _, log = await health(installation, "")

    assert code == 78
    assert "http.listen is empty" in log


@pytest.mark.parametrize("arguments", [[], ["--live"]], ids=lambda arguments: " ".join(arguments))
@pytest.mark.parametrize(
    ("status", "body"),
    [
        (200, "hello"),
        (200, "[]"),
        (200, '{"ready": true}'),
        (200, '{"ready": false, "reasons": []}'),
        (404, ""),
        (503, "busy"),
    ],
)
async def test_another_server_on_the_port_is_not_taken_for_a_healthy_daemon(
    bare: Installation, arguments: list[str], status: int, body: str
) -> None:
    async def answer(_request: web.Request) -> web.Response:
        return web.Response(status=status, text=body)

    app = web.Application()
    app.router.add_get("/{path:.*}", answer)
    runner = web.AppRunner(app)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        code, text, _ = await health(bare, f"127.0.0.1:{runner.addresses[0][1]}", *arguments)
    finally:
        await runner.cleanup()

    assert code == 1
    assert f"HTTP status {status}" in text
    assert "something else than outboxd listens there" in text


async def test_health_needs_no_database(bare: Installation) -> None:
    bare.configure(dsn="postgresql://nobody@127.0.0.1:1/none")
    async with bare.daemon() as daemon:
        code, _, _ = await health(bare, await address_of(daemon), "--live")

    assert code == 0


async def test_half_sent_requests_neither_starve_the_probes_nor_fill_the_log(installation: Installation) -> None:
    async with installation.ready_daemon() as daemon:
        [address] = (await daemon.wait_for_event("http.listening"))["addresses"]
        host, port = address.split(":")
        held = [socket.create_connection((host, int(port))) for _ in range(200)]
        for each in held:
            each.sendall(b"GET /metrics HTTP/1.1\r\nX: ")
        open_sockets = Path(f"/proc/{daemon.pid}/fd")

        await eventually(lambda: len(list(open_sockets.iterdir())) < 120)
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{address}/healthz") as answer:
                assert answer.status == 200
            async with session.get(f"http://{address}/healthz", headers={"X": "x" * 100_000}) as answer:
                assert answer.status == 400
        for each in held:
            each.close()
    assert {json.loads(line)["level"] for line in daemon.stderr_lines} == {"info"}
