"""Metrics of a running daemon, as scrapers read them."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import pytest
from prometheus_client.openmetrics.parser import text_string_to_metric_families as parse_openmetrics

from tests.acceptance.answers import Samples, address_of, ask, labels_of, samples_of, scrape, value
from tests.acceptance.installation import EVENT, UPDATE
from tests.eventually import PATIENCE_S, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from tests.acceptance.installation import Installation
    from tests.processes import Outboxd

OPENMETRICS = "application/openmetrics-text; version=1.0.0"
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

    samples = await eventually(counted)
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

    samples = await eventually(counted)
    for name in names:
        buckets = {
            dict(own)["le"]: count
            for (key, own), count in samples.items()
            if key == f"{name}_bucket" and own >= frozenset(labels.items())
        }
        assert (buckets["60.0"], buckets["300.0"], buckets["+Inf"]) == (0, 2, 2)
        assert (value(samples, f"{name}_sum", **labels) or 0) > 2 * 120
    assert (value(samples, "outbox_coalesced_net_processing_time_seconds_sum", **labels) or 0) < 60


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
    samples = await eventually(sampled, 2 * PATIENCE_S)
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
