"""The metrics that a daemon exposes, as its collector makes them: no database is needed for names and labels."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import TYPE_CHECKING

from prometheus_client import REGISTRY

from outboxd.metrics import Collector
from outboxd.pipeline import Pipeline
from outboxd.sampler import Sampler
from outboxd.stall import StallWatch
from tests.drains import Recorder, build, configure

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric


@dataclass(frozen=True)
class Emitted:
    """A family, under the name by which it is asked for: a counter's ends with `_total`."""

    name: str
    kind: str
    labels: tuple[str, ...]
    text: str


def of_outboxd() -> dict[str, Emitted]:
    """What outboxd's own collector exposes, by name."""
    loop = asyncio.new_event_loop()  # a pipeline can only be made inside one
    try:
        return _by_name(loop.run_until_complete(_collected()))
    finally:
        loop.close()


async def _collected() -> list[Metric]:
    config = configure()
    pipeline = Pipeline(config, build(config, Recorder()), lambda: "", backfills=True)
    watch = StallWatch(lambda: pipeline.live.registry)
    return list(Collector(pipeline, Sampler(pipeline), watch).collect())


def of_process() -> dict[str, Emitted]:
    """What the library says of the process, on the same page."""
    return _by_name(REGISTRY.collect())


def _by_name(families: Iterable[Metric]) -> dict[str, Emitted]:
    found: dict[str, Emitted] = {}
    for family in families:
        name = f"{family.name}_total" if family.type == "counter" else family.name
        labels = tuple(getattr(family, "_labelnames", ())) or _labels_seen(family)
        assert name not in found, f"{name} is exposed twice"
        found[name] = Emitted(name, family.type, labels, family.documentation)
    return found


def _labels_seen(family: Metric) -> tuple[str, ...]:
    return tuple(dict.fromkeys(label for sample in family.samples for label in sample.labels))
