"""What may change while the daemon runs, in one place: settings, registry, switches, and whether it is stopping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from outboxd.options import NOTHING_OFF

if TYPE_CHECKING:
    from collections.abc import Callable

    from outboxd.config import DrainConfig
    from outboxd.registry import Registry


class Live:
    """
    Read by every loop at every step, written by `main` (reload, signals) and by the loop that refreshes options.

    Attributes:
        drain: `[drain]` of the configuration.
        registry: Categories and receivers.
        switches: What is switched off.
        stopping: Nothing new is claimed or delivered.
        stopping_hard: Deliveries are being cancelled.
        prepared: Deliveries are counted ahead, because a daemon died lately (I9).
        progressed_at: When a loop last made progress, monotonic seconds (I13).
    """

    def __init__(self, drain: DrainConfig, registry: Registry) -> None:
        self.drain = drain
        self.registry = registry
        self.switches = NOTHING_OFF
        self.stopping = False
        self.stopping_hard = False
        self.prepared = False
        self.progressed_at = time.monotonic()
        self.on_progress: Callable[[], None] | None = None

    def beat(self) -> None:
        """Say that a loop made progress; the watchdog is fed from here and from nowhere else."""
        self.progressed_at = time.monotonic()
        if self.on_progress is not None:
            self.on_progress()

    def blocks(self, number: int) -> bool:
        """Whether a failure in this category stops its whole shard; an unknown category does."""
        category = self.registry.categories.get(number)
        return category is None or category.blocks
