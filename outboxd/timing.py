"""What a batch of settled deliveries tells the meter about times."""

from __future__ import annotations

from typing import TYPE_CHECKING

import structlog

from outboxd.meter import SLICE_S
from outboxd.turn import DATE_ADDED

if TYPE_CHECKING:
    from outboxd.ending import Delivered
    from outboxd.meter import Meter

log = structlog.get_logger()


def observe(outbox: str, meter: Meter, done: list[Delivered]) -> None:
    """Have times measured, if somebody wants them; whatever goes wrong with that, the deliveries are settled."""
    if not meter.timed:
        return
    by_category: dict[int, list[Delivered]] = {}
    for entry in done:
        if entry.calls:
            by_category.setdefault(entry.category, []).append(entry)
    try:
        for category, entries in by_category.items():
            _observe(meter, category, entries)
    except Exception:
        log.exception("metrics.crashed", outbox=outbox)


def _observe(meter: Meter, category: int, entries: list[Delivered]) -> None:
    lags = [e.ended_at - group.newest[DATE_ADDED] for e in entries for group in e.groups]
    waits = lags
    if sum(e.row_count for e in entries) > len(lags) or any(e.seconds > SLICE_S for e in entries):
        waits = [e.ended_at - int(e.seconds * 1e6) - group.oldest[DATE_ADDED] for e in entries for group in e.groups]
    meter.observe(category, lags, waits, [(len(e.groups), e.seconds) for e in entries])
