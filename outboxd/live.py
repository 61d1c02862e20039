"""What may change while the daemon runs, in one place: settings, registry, switches, and whether it is stopping."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from outboxd.options import NOTHING_OFF

if TYPE_CHECKING:
    from collections.abc import Callable

    from outboxd.config import DrainConfig
    from outboxd.model import Failed, Message, Unsent
    from outboxd.registry import Registry

OVERDUE_S = 5.0


class Work:
    """A receiver at work; `overdue` once it was said that it outlives its timeout."""

    __slots__ = ("overdue", "receiver")

    def __init__(self, receiver: str) -> None:
        self.receiver = receiver
        self.overdue = False


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
        on_progress: Called by `beat`.
        on_fitness: Called by `fitness_changed`.
        on_failed: Called with each failed delivery and its message.
        deadlines: When each receiver at work must have returned, monotonic seconds; by a key that bears its name.
        look_every_s_max: However long the poll interval, look so often: the watchdog is fed by finished looks.
    """

    def __init__(self, drain: DrainConfig, registry: Registry) -> None:
        self.drain = drain
        self.registry = registry
        self.switches = NOTHING_OFF
        self.stopping = False
        self.stopping_hard = False
        self.prepared = False
        self.deadlines: dict[Work, float] = {}
        self.look_every_s_max = float("inf")
        self.on_progress: Callable[[], None] | None = None
        self.on_fitness: Callable[[], None] | None = None
        self.on_failed: Callable[[Failed, Message | Unsent], None] | None = None

    @property
    def poll_interval_s(self) -> float:
        """Longest rest between two looks."""
        return min(self.drain.poll_interval_s, self.look_every_s_max)

    def is_delivering(self) -> bool:
        """Whether a receiver is at work inside its timeout."""
        now = time.monotonic()
        return any(deadline > now for deadline in self.deadlines.values())

    def overdue(self) -> list[str]:
        """Name the receivers that should have returned some seconds ago and have not been named before."""
        late = time.monotonic() - OVERDUE_S
        found = [work for work, deadline in self.deadlines.items() if deadline < late and not work.overdue]
        for work in found:
            work.overdue = True
        return [work.receiver for work in found]

    def beat(self) -> None:
        """Say that a loop made progress; the watchdog is fed from here and from nowhere else."""
        if self.on_progress is not None:
            self.on_progress()

    def fitness_changed(self) -> None:
        """Say that an outbox was found fit to be drained, or unfit; or that the claim session was lost, or is back."""
        if self.on_fitness is not None:
            self.on_fitness()

    def blocks(self, number: int) -> bool:
        """Whether a failure in this category stops its whole shard; an unknown category does."""
        category = self.registry.categories.get(number)
        return category is None or category.blocks
