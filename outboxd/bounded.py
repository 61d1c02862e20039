"""What a run that ends by itself (`--once`, `outbox_runner`) remembers."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outboxd.model import Candidate, ShardKey

DRAINS_MAX = 10


@dataclass(slots=True)
class BoundedRun:
    """
    The shards of a bounded run.

    A shard that failed, was lost or is at rest is not tried again; one is drained at most ten times, because
    receivers may write messages. `exhausted` holds those that were still due then; `rounds` counts passes that found
    something, of which `rounds_max` may be made.
    """

    drains: dict[ShardKey, int] = field(default_factory=dict)
    closed: set[ShardKey] = field(default_factory=set)
    failed: set[ShardKey] = field(default_factory=set)
    skipped: set[ShardKey] = field(default_factory=set)
    exhausted: set[ShardKey] = field(default_factory=set)
    claimed_in_pass: int = 0
    passes: int = 0
    rounds: int = 0
    rounds_max: int | None = None

    def admits(self, candidate: Candidate) -> bool:
        """Whether the shard may be drained (again) in this run."""
        if candidate.due_at is None and not candidate.is_new:
            return True  # the same drain goes on
        if candidate.shard in self.closed:
            return False
        drains = self.drains.get(candidate.shard, 0) + 1
        if drains > DRAINS_MAX:
            self.exhausted.add(candidate.shard)
            return False
        self.drains[candidate.shard] = drains
        return True
