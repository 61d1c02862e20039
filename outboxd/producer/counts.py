"""What this process has written and flushed since it started, whichever producer did it; and how Prometheus sees it."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from outboxd.meter import UNKNOWN, Meter

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from outboxd.config import Config
    from outboxd.meter import Tally

saved: dict[tuple[str, str], int] = {}
"""Messages that were committed, by outbox and category."""
_meters: dict[str, tuple[Meter, dict[int, str]]] = {}
_published: list[object] = []
_exposed_by_others: list[None] = []
"""As long as there are collectors that have these counts among their own."""


def save(outbox: str, categories: Mapping[str, int]) -> None:
    """Count the messages of an outbox, by category."""
    for category, count in categories.items():
        saved[outbox, category] = saved.get((outbox, category), 0) + count


def meter_of(outbox: str, config: Config) -> Meter:
    """Return what counts the flushed deliveries of an outbox, and times them where somebody may look."""
    names = {category.value: name for name, category in config.categories.items()}
    meter, known = _meters.setdefault(outbox, (Meter(), names))
    known.update(names)
    meter.timed = bool(_published or _exposed_by_others)
    return meter


def tallies() -> Iterator[tuple[tuple[str, str], Tally]]:
    """Yield what was flushed, by outbox and category."""
    for outbox, (meter, names) in list(_meters.items()):
        for number, tally in list(meter.categories.items()):
            yield (outbox, names.get(number, UNKNOWN)), tally


def flushed(field: str) -> dict[tuple[str, str], int]:
    """Sum up one of the counts of flushed deliveries, by outbox and category."""
    sums: dict[tuple[str, str], int] = {}
    for labels, tally in tallies():
        sums[labels] = sums.get(labels, 0) + getattr(tally, field)
    return sums


class Collector:
    """Collects them for prometheus-client, unless a daemon's collector does."""

    def describe(self) -> list[Any]:
        """Nothing: else the library would collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Build the families; none while a daemon exposes them: each name may stand on a page once."""
        if _exposed_by_others:
            return
        from outboxd import families

        yield families.processed({}, flushed("delivered"))
        for field in families.SUMMED:
            yield families.summed(field, flushed(field))
        yield families.saved(saved)
        for field in families.TIMES:
            yield families.timed(field, (), tallies())


@contextlib.contextmanager
def exposed_elsewhere() -> Iterator[None]:
    """Expose nothing for a while, because another collector of this process does."""
    _exposed_by_others.append(None)
    try:
        yield
    finally:
        _exposed_by_others.pop()


def publish() -> None:
    """Add them to the library's default registry, once; in a daemon, a receiver's module may do so."""
    if not _published:
        from prometheus_client import REGISTRY

        _published.append(Collector())
        REGISTRY.register(_published[0])  # type: ignore[arg-type]
