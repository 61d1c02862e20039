"""Failing deliveries as a server that speaks Sentry's protocol gets them from the real SDK."""

from __future__ import annotations

import json
import signal
from typing import TYPE_CHECKING, Any

import pytest
from aiohttp import web

from tests.acceptance.installation import EVENT, SCOPE, Installation

if TYPE_CHECKING:
    from collections.abc import AsyncIterator
    from pathlib import Path

SECRET = "jane@example.org"
# The receiver has the payload in a variable, and logs; only the exception is to leave.
FAILING = """\
import logging

@receiver("EVENT")
async def notify(message):
    address = message.payload["address"]
    logging.getLogger("shop").error("cannot reach %s", address)
    raise RetryLater(3600) if message.object_identifier == 2 else ConnectionError("the endpoint is down")
"""
INITIALISED = """\
import sentry_sdk

sentry_sdk.init(release="shop@7")
"""


class SentryServer:
    """Takes envelopes; `events` are the events in them, `others` the kinds of everything else."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.others: list[str] = []
        self.dsn = ""

    async def take(self, request: web.Request) -> web.Response:
        lines = (await request.read()).split(b"\n")  # a header; then of each item a header and its content
        for header, content in zip(lines[1::2], lines[2::2], strict=False):
            if not header:
                break
            kind = json.loads(header)["type"]
            if kind == "event":
                self.events.append(json.loads(content))
            else:
                self.others.append(kind)
        return web.json_response({})


@pytest.fixture
async def sentry() -> AsyncIterator[SentryServer]:
    made = SentryServer()
    app = web.Application()
    app.router.add_post("/api/1/envelope/", made.take)
    runner = web.AppRunner(app)
    await runner.setup()
    await web.TCPSite(runner, "127.0.0.1", 0).start()
    made.dsn = f"http://key@127.0.0.1:{runner.addresses[0][1]}/1"
    yield made
    await runner.cleanup()


@pytest.fixture
async def failing(installation: Installation) -> Installation:
    """An installation with a message whose delivery fails."""
    installation.receive(FAILING)
    await write(installation, 1)
    return installation


async def write(installation: Installation, obj: int) -> None:
    await installation.connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, payload)"
        " VALUES ($1, 42, $2, $3, $4)",
        SCOPE,
        EVENT,
        obj,
        json.dumps({"address": SECRET}),
    )


async def captured(installation: Installation, sentry: SentryServer) -> dict[str, Any]:
    """Run a daemon until the failure is written, end it, and return the one event that was sent."""
    async with installation.ready_daemon(env={"SENTRY_DSN": sentry.dsn}) as daemon:
        await daemon.wait_for_event("shard.rescheduled")
        daemon.signal(signal.SIGTERM)
        assert await daemon.wait() == 0
    [event] = sentry.events
    return event


async def test_a_failing_delivery_is_captured_with_its_category_scope_shard_and_object_and_nothing_else_is(
    failing: Installation, sentry: SentryServer
) -> None:
    event = await captured(failing, sentry)

    assert event["tags"] == {"outbox.category": "EVENT", "outbox.shard_scope": "ACCOUNT"}
    context = event["contexts"]["outbox"]
    assert (context["outbox"], context["shard_identifier"], context["object_identifier"]) == ("main", "42", "1")
    assert (context["attempt"], context["coalesced"]) == (1, 1)
    assert context["message"] in await failing.ids()
    raised = event["exception"]["values"][-1]
    assert (raised["type"], raised["value"]) == ("ConnectionError", "the endpoint is down")
    assert raised["stacktrace"]["frames"][-1]["function"] == "notify"
    assert event["release"].startswith("outboxd@")
    assert sentry.others == []


async def test_no_payload_leaves_by_default_not_even_in_local_variables(
    failing: Installation, sentry: SentryServer
) -> None:
    assert SECRET not in json.dumps(await captured(failing, sentry))


async def test_the_payload_is_sent_when_that_is_configured(failing: Installation, sentry: SentryServer) -> None:
    failing.config.write_text(failing.config.read_text() + "[sentry]\nsend_payload = true\n")
    event = await captured(failing, sentry)

    assert event["contexts"]["outbox"]["payload"] == {"address": SECRET}


async def test_a_failure_without_an_exception_is_captured_as_a_message(
    installation: Installation, sentry: SentryServer
) -> None:
    installation.receive(FAILING)
    await write(installation, 2)
    event = await captured(installation, sentry)

    assert "3600" in json.dumps(event["message"])
    assert event["level"] == "error"
    assert event["tags"]["outbox.category"] == "EVENT"


async def test_a_receiver_module_s_own_settings_are_kept_and_the_payload_still_stays(
    failing: Installation, sentry: SentryServer
) -> None:
    failing.receive(INITIALISED + FAILING.replace("logging.getLogger", "if False: logging.getLogger"))
    event = await captured(failing, sentry)

    assert event["release"] == "shop@7"
    assert event["tags"]["outbox.category"] == "EVENT"
    assert SECRET not in json.dumps(event)


async def test_a_message_has_no_variables_either_where_stack_traces_are_attached(
    installation: Installation, sentry: SentryServer
) -> None:
    initialised = INITIALISED.replace("release=", "attach_stacktrace=True, release=")
    installation.receive(initialised + FAILING.replace("logging.getLogger", "if False: logging.getLogger"))
    await write(installation, 2)
    event = await captured(installation, sentry)

    assert "3600" in json.dumps(event["message"])
    assert SECRET not in json.dumps(event)


async def test_once_captures_too_and_ends_when_all_is_sent(failing: Installation, sentry: SentryServer) -> None:
    process = await failing.run("--once", env={"SENTRY_DSN": sentry.dsn})

    assert process.returncode == 1, process.stderr
    [event] = sentry.events
    assert event["tags"] == {"outbox.category": "EVENT", "outbox.shard_scope": "ACCOUNT"}


async def test_a_category_that_nobody_configured_has_its_number_for_a_tag(
    installation: Installation, sentry: SentryServer
) -> None:
    [written] = await installation.insert([7], category=77)
    event = await captured(installation, sentry)

    assert f"category 77 of message {written}" in json.dumps(event["message"])
    assert event["tags"] == {"outbox.category": "77", "outbox.shard_scope": "ACCOUNT"}
    context = event["contexts"]["outbox"]
    assert (context["outbox"], context["shard_identifier"], context["message"]) == ("main", "7", written)
    assert (context["attempt"], context["coalesced"]) == (1, 1)
    assert event["fingerprint"] == ["category 77 is not in the configuration"]


async def test_a_payload_that_cannot_be_parsed_is_captured_with_all_but_the_payload(
    installation: Installation, sentry: SentryServer
) -> None:
    """What jsonb takes, and a parser does not."""
    installation.receive(FAILING)
    installation.config.write_text(installation.config.read_text() + "[sentry]\nsend_payload = true\n")
    await installation.connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, payload)"
        " VALUES ($1, 42, $2, 3, (repeat('[', 5000) || repeat(']', 5000))::jsonb)",
        SCOPE,
        EVENT,
    )
    event = await captured(installation, sentry)

    assert "cannot be parsed" in json.dumps(event["message"])
    assert event["tags"]["outbox.category"] == "EVENT"
    assert (event["contexts"]["outbox"]["object_identifier"], "payload" in event["contexts"]["outbox"]) == ("3", False)
    assert " of message " not in event["fingerprint"][0]


async def test_without_sentry_dsn_nothing_is_sent(failing: Installation, sentry: SentryServer) -> None:
    process = await failing.run("--once", env={"SENTRY_DSN": ""})

    assert process.returncode == 1
    assert (sentry.events, sentry.others) == ([], [])


async def test_without_the_extra_it_warns_and_drains(
    installation: Installation, sentry: SentryServer, tmp_path: Path
) -> None:
    missing = tmp_path / "missing"
    missing.mkdir()
    (missing / "sentry_sdk.py").write_text("raise ImportError('not installed')\n")
    ids = await installation.insert([1])
    async with installation.ready_daemon(env={"SENTRY_DSN": sentry.dsn}, module_path=missing) as daemon:
        warning = await daemon.wait_for_event("sentry.missing")
        assert "install outboxd with the extra sentry" in warning["hint"]
        await installation.drained(by=daemon)

    assert installation.delivered() == ids
    assert sentry.events == []


async def test_a_dsn_that_is_none_is_a_warning_and_it_drains(installation: Installation) -> None:
    ids = await installation.insert([1])
    async with installation.ready_daemon(env={"SENTRY_DSN": "no such thing"}) as daemon:
        await daemon.wait_for_event("sentry.refused")
        await installation.drained(by=daemon)

    assert installation.delivered() == ids


async def test_a_server_that_is_away_holds_nothing_up(failing: Installation) -> None:
    process = await failing.run("--once", env={"SENTRY_DSN": "http://key@127.0.0.1:1/1"})

    assert process.returncode == 1
    assert "Traceback" not in process.stderr
