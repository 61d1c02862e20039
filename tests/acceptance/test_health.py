"""Health and metrics of a running daemon, as probes, scrapers and people ask for them."""

from __future__ import annotations

import json
import re
import signal
import socket
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import aiohttp
import pytest
from aiohttp import web
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.acceptance.installation import EVENT, UPDATE
from tests.acceptance.servers import ComingAndGoing, free_port
from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterable

    from prometheus_client.metrics_core import Metric

    from tests.acceptance.installation import Installation
    from tests.processes import Outboxd

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
WAIT = """\
@receiver("EVENT")
async def wait(message):
    record(message, "start")
    await opened("gate")
    record(message)
"""
# An hour: what fails once does not fail again while a test counts.
VARIED = """\
from prometheus_client import Counter

CALLS = Counter("shop_calls", "Calls of this receiver.", ["kind"])

@receiver("UPDATE")
async def update(message):
    CALLS.labels("update").inc()
    record(message)

@receiver("EVENT")
async def event(message):
    CALLS.labels("event").inc()
    if message.object_identifier == 1:
        raise RetryLater(3600)
    if message.object_identifier == 2:
        raise Discard("not wanted")
    record(message)
"""

PRODUCING = """\
from outboxd.producer import Producer

PRODUCER = Producer.load()

@receiver("UPDATE", "EVENT")
async def accept(message):
    record(message)
"""


@dataclass
class Answer:
    status: int
    content_type: str
    text: str


async def address_of(daemon: Outboxd) -> str:
    event = await daemon.wait_for_event("http.listening")
    address: str = event["addresses"][0]
    return address


async def ask(address: str, path: str, accept: str = "") -> Answer:
    headers = {"Accept": accept} if accept else {}
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}", headers=headers) as response:
        return Answer(response.status, response.headers["Content-Type"], await response.text())


async def reasons(address: str) -> list[str]:
    """Why it is not ready; empty when it is."""
    answer = await ask(address, "/readyz")
    document = json.loads(answer.text)
    found: list[str] = document["reasons"]
    assert (answer.status, document["ready"]) == ((503, False) if found else (200, True))
    return found


async def ready(address: str) -> None:
    """Wait until it is."""

    async def is_ready() -> bool:
        return await reasons(address) == []

    _: bool = await eventually(is_ready)


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(families: Iterable[Metric]) -> Samples:
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


async def scrape(address: str) -> Samples:
    answer = await ask(address, "/metrics")
    assert (answer.status, answer.content_type.partition(";")[0]) == (200, "text/plain")
    return samples_of(parse(answer.text))


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def labels_of(samples: Samples, name: str, label: str) -> set[str]:
    return {dict(labels)[label] for key, labels in samples if key == name}


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


# --- metrics -----------------------------------------------------------------------------------------------


@pytest.fixture
async def worked(installation: Installation) -> AsyncIterator[tuple[Installation, Outboxd, str]]:
    """A daemon that has delivered, failed and buried what is counted below, and its address."""
    installation.receive(VARIED)
    await installation.insert([1], category=UPDATE, objects=[5, 5, 5, 6])  # two deliveries of four rows
    await installation.insert([2, 3], category=EVENT, objects=[7])
    await installation.insert([11, 12], category=EVENT, objects=[1])  # fail
    await installation.insert([21], category=EVENT, objects=[2])  # buried
    await installation.connection.execute("UPDATE outbox SET date_added = now() - interval '2 minutes'")
    async with installation.ready_daemon() as daemon:
        address = await address_of(daemon)

        async def settled() -> bool:
            return await installation.count() == 2 == await installation.count("SELECT count(*) FROM outboxd.failure")

        await installation.until(settled, by=daemon)
        yield installation, daemon, address


async def test_counters_add_up_with_what_was_delivered_failed_and_buried(
    worked: tuple[Installation, Outboxd, str],
) -> None:
    installation, _, address = worked
    update, event = {"outbox": "main", "category": "UPDATE"}, {"outbox": "main", "category": "EVENT"}

    async def counted() -> Samples:
        samples = await scrape(address)
        assert value(samples, "outbox_processed_total", **update, synchronous="false") == 2
        assert value(samples, "outbox_processed_total", **event, synchronous="false") == 2
        assert value(samples, "outbox_rows_retired_total", **update) == 4
        assert value(samples, "outbox_rows_retired_total", **event) == 2
        assert value(samples, "outbox_failures_total", **event) == 2
        assert value(samples, "outbox_failures_total", **update) == 0
        assert value(samples, "outbox_buried_total", **event) == 1
        return samples

    samples: Samples = await eventually(counted)
    assert len(installation.delivered()) == 4
    assert (value(samples, "outboxd_claims_total", outbox="main") or 0) >= 6
    assert value(samples, "outboxd_concurrency") == 5
    assert value(samples, "outboxd_session_open", session="claim") == 1
    assert labels_of(samples, "outboxd_build_info", "version")


async def test_histograms_know_the_age_of_messages_and_count_each_delivery_once(
    worked: tuple[Installation, Outboxd, str],
) -> None:
    """Every message was written two minutes ago."""
    *_, address = worked
    names = ("outbox_processing_lag_seconds", "outbox_coalesced_net_queue_time_seconds")
    labels = {"outbox": "main", "category": "UPDATE", "synchronous": "false"}

    async def counted() -> Samples:
        samples = await scrape(address)
        for name in (*names, "outbox_coalesced_net_processing_time_seconds"):
            assert value(samples, f"{name}_count", **labels) == 2
        return samples

    samples: Samples = await eventually(counted)
    for name in names:
        buckets = {
            dict(own)["le"]: count
            for (key, own), count in samples.items()
            if key == f"{name}_bucket" and own >= frozenset(labels.items())
        }
        assert (buckets["60.0"], buckets["300.0"], buckets["+Inf"]) == (0, 2, 2)
        assert (value(samples, f"{name}_sum", **labels) or 0) > 2 * 120
    assert (value(samples, "outbox_coalesced_net_processing_time_seconds_sum", **labels) or 0) < 60


@pytest.mark.timeout(120)
async def test_gauges_show_what_is_in_the_table(worked: tuple[Installation, Outboxd, str]) -> None:
    *_, address = worked
    expected = {
        "schedule_batch_total_outbox_count": 2,
        "schedule_batch_maximum_shard_depth": 1,
        "outboxd_shards_in_backoff": 2,
        "outboxd_dead_letters": 1,
        "outbox_due_lag_seconds": 0,
    }

    async def sampled() -> Samples:
        samples = await scrape(address)
        assert {name: value(samples, name, outbox="main") for name in expected} == expected
        return samples

    # Samples are taken every ten seconds; on a machine where one takes long, every minute.
    samples: Samples = await eventually(sampled, 80)
    assert (value(samples, "outboxd_table_bytes", outbox="main") or 0) > 0
    assert value(samples, "outboxd_sample_age_seconds", outbox="main") is not None


async def test_a_receiver_s_own_metrics_and_those_of_the_process_are_on_the_page(
    worked: tuple[Installation, Outboxd, str],
) -> None:
    *_, address = worked
    samples = await scrape(address)

    assert value(samples, "shop_calls_total", kind="update") == 2
    assert value(samples, "shop_calls_total", kind="event") == 5
    assert (value(samples, "process_resident_memory_bytes") or 0) > 0


async def test_every_family_stands_once_on_the_page_of_a_daemon_whose_receivers_load_a_producer(
    installation: Installation,
) -> None:
    installation.receive(PRODUCING)
    async with installation.ready_daemon() as daemon:
        text = (await ask(await address_of(daemon), "/metrics")).text

    families = re.findall(r"^# TYPE (\S+)", text, re.MULTILINE)
    assert "outbox_processed_total" in families
    assert sorted(families) == sorted(set(families))


async def test_openmetrics_is_answered_where_it_is_asked_for_and_says_the_same(
    worked: tuple[Installation, Outboxd, str],
) -> None:
    *_, address = worked
    plain = await scrape(address)
    answer = await ask(address, "/metrics", accept=f"{OPENMETRICS},text/plain;q=0.5")

    assert answer.content_type.startswith("application/openmetrics-text")
    assert answer.text.endswith("# EOF\n")
    ours = re.compile("outbox|schedule_batch|backfill_outboxes|shop_calls_total")
    families = parse_openmetrics(answer.text)  # type: ignore[no-untyped-call]
    names = {name for name, _ in samples_of(families) if ours.match(name)}
    assert names == {name for name, _ in plain if ours.match(name) and not name.endswith("_created")}


async def test_numbers_that_nobody_configured_share_one_label(installation: Installation) -> None:
    for category in (77, 78, 79):
        await installation.insert([category], category=category)
    async with installation.ready_daemon() as daemon:
        address = await address_of(daemon)

        async def failed() -> bool:
            return (value(await scrape(address), "outbox_failures_total", outbox="main", category="unknown") or 0) >= 3

        await installation.until(failed, by=daemon)
        samples = await scrape(address)

    categories = {dict(labels)["category"] for _, labels in samples if "category" in dict(labels)}
    assert categories == {"UPDATE", "EVENT", "unknown"}


async def test_a_scrape_sends_no_statement(installation: Installation) -> None:
    """300 scrapes, while the daemon itself sends a few statements a second."""
    installation.drain["poll_interval_s"] = 3600
    installation.configure()
    async with installation.ready_daemon() as daemon:
        address = await address_of(daemon)
        before = round_trips(await scrape(address))
        for _ in range(300):
            await scrape(address)
        assert round_trips(await scrape(address)) - before < 300


def round_trips(samples: Samples) -> float:
    sent = [count for (name, _), count in samples.items() if name == "outboxd_database_round_trips_total"]
    assert sent
    return sum(sent)


async def test_a_kill_switch_shows(installation: Installation) -> None:
    await installation.connection.execute(
        "INSERT INTO outboxd.pause (kind, shard_scope, shard_identifier, reason, author)"
        " VALUES ('shard', 1, '4', 'their endpoint is down', 'me')"
    )
    async with installation.ready_daemon() as daemon:
        samples = await scrape(await address_of(daemon))

    kinds = {
        kind: value(samples, "outboxd_switched_off", kind=kind) for kind in ("shard", "category", "outbox", "backfill")
    }
    assert kinds == {"shard": 1, "category": 0, "outbox": 0, "backfill": 0}


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
