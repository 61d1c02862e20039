"""What this process has written and flushed since it started, whichever producer did it; and how Prometheus sees it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

from outboxd.meter import UNKNOWN, Meter

if TYPE_CHECKING:
    from prometheus_client.core import Metric

    from outboxd.config import Config

saved: dict[tuple[str, str], int] = {}
"""Messages that were committed, by outbox and category."""
_meters: dict[str, tuple[Meter, dict[int, str]]] = {}
_published: list[object] = []


def save(messages: Iterable[tuple[str, str]]) -> None:
    """Count messages, each by its outbox and category."""
    for names in messages:
        saved[names] = saved.get(names, 0) + 1


def meter_of(outbox: str, config: Config) -> Meter:
    """Return what counts the flushed deliveries of an outbox."""
    names = {category.value: name for name, category in config.categories.items()}
    meter, known = _meters.setdefault(outbox, (Meter(), names))
    known.update(names)
    return meter


def flushed(field: str) -> dict[tuple[str, str], int]:
    """Sum up one of the counts of flushed deliveries, by outbox and category."""
    sums: dict[tuple[str, str], int] = {}
    for outbox, (meter, names) in list(_meters.items()):
        for number, tally in list(meter.categories.items()):
            labels = (outbox, names.get(number, UNKNOWN))
            sums[labels] = sums.get(labels, 0) + getattr(tally, field)
    return sums


class Collector:
    """Collects them for prometheus-client, in a process that is no daemon."""

    def describe(self) -> list[Any]:
        """Nothing: else the library would collect once to learn the names."""
        return []

    def collect(self) -> Iterator[Metric]:
        """Build the families."""
        from outboxd import families

        yield families.processed({}, flushed("delivered"))
        for field in families.SUMMED:
            yield families.summed(field, flushed(field))
        yield families.saved(saved)


def publish() -> None:
    """Add them to the library's default registry, once. A daemon does not: its own collector has them."""
    if not _published:
        from prometheus_client import REGISTRY

        _published.append(Collector())
        REGISTRY.register(_published[0])  # type: ignore[arg-type]
