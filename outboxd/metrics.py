"""
What Prometheus sees: numbers that the loops keep anyway, put into metric families when a scraper asks.

Labels are names from the configuration, so their number is bounded: never a shard or an object. docs/operations.md has
the list.
"""

from __future__ import annotations

import contextlib
import platform
import time
from collections.abc import Iterator
from itertools import chain
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric

from outboxd import families, readiness
from outboxd.meter import UNKNOWN
from outboxd.producer import counts
from outboxd.version import __version__

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from outboxd.meter import Meter, Tally
    from outboxd.pipeline import Pipeline
    from outboxd.sampler import Sampler
    from outboxd.session import Session
    from outboxd.stall import StallWatch


class Collector:
    """
    Collects everything that this process counts and samples.

    Args:
        pipeline: What is drained.
        sampler: Has the samples of its outboxes.
        stall: Knows how late the event loop was.
    """

    def __init__(self, pipeline: Pipeline, sampler: Sampler, stall: StallWatch) -> None:
        self._pipeline = pipeline
        self._sampler = sampler
        self._stall = stall

    def describe(self) -> list[Metric]:
        """Nothing: else the library would collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Build the families, as prometheus-client calls for them."""
        return chain(
            self._deliveries(), self._times(), self._rounds(), self._outboxes(), self._backfills(), self._process()
        )

    def _tallies(self) -> Iterator[tuple[tuple[str, str], Tally]]:
        for branch in self._pipeline.branches:
            for number, tally in list(branch.meter.categories.items()):
                yield (branch.config.name, self._category(number)), tally

    def _category(self, number: int) -> str:
        """Name a category. Rows may bear numbers that nobody configured, any number of them: they share a label."""
        category = self._pipeline.live.registry.categories.get(number)
        return UNKNOWN if category is None else category.name

    def _deliveries(self) -> Iterator[Metric]:
        yield families.processed(self._summed("delivered"), counts.flushed("delivered"))
        for field in families.SUMMED:
            yield families.summed(field, families.added(self._summed(field), counts.flushed(field)))
        yield families.saved(families.added(self._saved(), counts.saved))

    def _summed(self, field: str) -> dict[tuple[str, str], int]:
        # From 0 on, or the first increase would not be seen as one.
        known = [c.name for c in self._pipeline.live.registry.categories.values()] + [UNKNOWN]
        sums = {(branch.config.name, name): 0 for branch in self._pipeline.branches for name in known}
        for (outbox, name), tally in self._tallies():
            sums[outbox, name] = sums.get((outbox, name), 0) + getattr(tally, field)
        return sums

    def _saved(self) -> dict[tuple[str, str], int]:
        saved: dict[tuple[str, str], int] = {}
        backfill = self._pipeline.backfill
        for walker in backfill.walkers if backfill is not None else ():
            key = (walker.model.outbox, walker.model.category)
            saved[key] = saved.get(key, 0) + walker.progress.messages
        return saved

    def _times(self) -> Iterator[Metric]:
        for field in families.TIMES:
            yield families.timed(field, self._tallies(), counts.tallies())

    def _rounds(self) -> Iterator[Metric]:
        batch = _gauge("schedule_batch_queued_batch_size", "Shards claimed in the last round.")
        claimed = CounterMetricFamily("outboxd_claims", "Shards claimed.", labels=["outbox"])
        lost = CounterMetricFamily("outboxd_claims_lost", "Shards that another drainer held.", labels=["outbox"])
        held = _gauge("outboxd_claims_held", "Shards that this process has locked now.")
        for branch in self._pipeline.branches:
            name = [branch.config.name]
            batch.add_metric(name, branch.claimed.last_batch)
            claimed.add_metric(name, branch.claimed.claimed)
            lost.add_metric(name, branch.claimed.lost)
            held.add_metric(name, branch.scheduler.claims_held if branch.scheduler is not None else 0)
        yield from (batch, claimed, lost, held)

    def _outboxes(self) -> Iterator[Metric]:
        families = {
            "messages": _gauge("schedule_batch_total_outbox_count", "Messages in the table; estimated above 8 MB."),
            "depth": _gauge("schedule_batch_maximum_shard_depth", "Messages of the deepest shard, up to 10 000."),
            "lag_s": _gauge("outbox_due_lag_seconds", "Age of the oldest due row, neither paused nor in backoff."),
            "failing_shards": _gauge("outboxd_shards_in_backoff", "Shards with a failure, up to 10 000."),
            "dead_letters": _gauge("outboxd_dead_letters", "Buried messages that are kept, up to 10 000."),
            "dead_tuples": _gauge("outboxd_table_dead_tuples", "Dead rows, as the server's statistics have them."),
            "bytes": _gauge("outboxd_table_bytes", "Size of the table with its indexes."),
        }
        age = _gauge("outboxd_sample_age_seconds", "Age of the sample that the gauges about this outbox come from.")
        for outbox, sample in list(self._sampler.samples.items()):
            for field, family in families.items():
                family.add_metric([outbox], getattr(sample, field))
            age.add_metric([outbox], time.monotonic() - sample.taken_at)
        yield from families.values()
        yield age
        yield from self._switched_off()

    def _switched_off(self) -> Iterator[Metric]:
        switches, gates = self._pipeline.switchboard.now, self._pipeline.switchboard.gates
        off = GaugeMetricFamily("outboxd_switched_off", "What kill switches hold, by kind.", labels=["kind"])
        off.add_metric(["shard"], len(switches.shards))
        off.add_metric(["category"], len(switches.categories))
        off.add_metric(["outbox"], len(switches.outboxes))
        off.add_metric(["backfill"], len(gates.named()))
        yield off

    def _backfills(self) -> Iterator[Metric]:
        low = GaugeMetricFamily("backfill_outboxes_low_bound", "Lowest id not done yet.", labels=["table", "version"])
        target = GaugeMetricFamily("backfill_outboxes_target_version", "Version to walk to.", labels=["table"])
        done = CounterMetricFamily("backfill_outboxes_backfilled", "Messages written by walks.", labels=["table"])
        missing = CounterMetricFamily("backfill_outboxes_watermark_missing", "Walks of which Redis has no watermark.")
        broken = CounterMetricFamily("backfill_outboxes_watermark_errors", "Watermarks that were none.")
        backfill = self._pipeline.backfill
        if backfill is not None and backfill.walkers:
            known = backfill.metrics()
            for (table, version), bound in known.low_bound.items():
                if bound.lstrip("-").isdigit():  # a uuid is no number: its progress is in `backfill status`
                    low.add_metric([table, str(version)], float(bound))
            for table, version in known.target_version.items():
                target.add_metric([table], version)
            for table, messages in known.backfilled_total.items():
                done.add_metric([table], messages)
            missing.add_metric([], known.watermark_missing_total)
            broken.add_metric([], known.watermark_errors_total)
        yield from (low, target, done, missing, broken)

    def _process(self) -> Iterator[Metric]:
        pipeline = self._pipeline
        build = GaugeMetricFamily("outboxd_build_info", "Always 1.", labels=["version", "python"])
        build.add_metric([__version__, platform.python_version()], 1)
        ready = 0 if readiness.reasons(pipeline) else 1
        yield build
        yield GaugeMetricFamily("outboxd_ready", "Whether /readyz says so.", value=ready)
        yield GaugeMetricFamily("outboxd_prepared_mode", "Whether a daemon died lately.", value=pipeline.live.prepared)
        yield GaugeMetricFamily(
            "outboxd_deliveries_in_flight", "Receivers waited for.", value=len(pipeline.live.deadlines)
        )
        yield GaugeMetricFamily(
            "outboxd_concurrency", "Deliveries at once, at most.", value=pipeline.live.drain.concurrency
        )
        text = "How late the event loop was at its worst in the last one to two minutes."
        yield GaugeMetricFamily("outboxd_event_loop_lag_seconds", text, value=self._stall.worst_s)
        yield from self._horizon()
        yield from self._sessions()

    def _horizon(self) -> Iterator[Metric]:
        age = GaugeMetricFamily(
            "outboxd_oldest_snapshot_transactions", "Age of the oldest snapshot held, in transactions."
        )
        seconds = GaugeMetricFamily("outboxd_oldest_snapshot_seconds", "Age of the oldest transaction with a snapshot.")
        if self._sampler.horizon is not None:
            age.add_metric([], self._sampler.horizon.transactions)
            seconds.add_metric([], self._sampler.horizon.seconds)
        yield from (age, seconds)

    def _sessions(self) -> Iterator[Metric]:
        labels = ["session"]
        trips = CounterMetricFamily("outboxd_database_round_trips", "Statements sent.", labels=labels)
        is_open = GaugeMetricFamily("outboxd_session_open", "Whether the connection is open.", labels=labels)
        busy = GaugeMetricFamily("outboxd_session_busy", "Whether a statement is under way.", labels=labels)
        claims = self._pipeline.claims
        trips.add_metric(["claim"], claims.round_trips)
        is_open.add_metric(["claim"], claims.is_open)
        for session in self._all_sessions():
            trips.add_metric([session.name], session.round_trips)
            is_open.add_metric([session.name], session.life > 0)
            busy.add_metric([session.name], session.is_busy)
        yield from (trips, is_open, busy)

    def _all_sessions(self) -> Iterator[Session]:
        pipeline = self._pipeline
        yield pipeline.switchboard.session
        yield self._sampler.session
        if pipeline.backfill is not None and pipeline.backfill.walkers:
            yield pipeline.backfill.session
        for branch in pipeline.branches:
            if branch.outbox is not None:
                yield from (branch.outbox.finding, branch.outbox.reading, branch.outbox.settling)
                if branch.outbox.failing.round_trips:
                    yield branch.outbox.failing
            if branch.source_session is not None and branch.source_session.round_trips:
                yield branch.source_session


@contextlib.contextmanager
def published(collector: Collector) -> Iterator[CollectorRegistry]:
    """Add it to the library's default registry, where the metrics of receivers and of the process are, for a while."""
    with counts.exposed_elsewhere():
        REGISTRY.register(collector)
        try:
            yield REGISTRY
        finally:
            REGISTRY.unregister(collector)


def time_deliveries(meters: list[Meter]) -> None:
    """Have the times of deliveries measured from now on."""
    for meter in meters:
        meter.timed = True


def _gauge(name: str, text: str) -> GaugeMetricFamily:
    return GaugeMetricFamily(name, text, labels=["outbox"])
