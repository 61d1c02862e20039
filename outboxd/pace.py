"""How fast the drainers take turns: so many claims are held ahead."""

from __future__ import annotations

import time

AHEAD_WINDOW_S = 0.2


class Pace:
    """How many turns the drainers took in the last window of 0.2 s."""

    def __init__(self) -> None:
        self._began_at = 0.0
        self._count = 0
        self._last_count = 0

    def tick(self) -> None:
        """Count one turn."""
        self._count += 1

    def recent(self) -> int:
        """
        Tell the greater of this window's and the last one's count.

        Not extrapolated: a drain that begins would reach its pace sooner, and take all shards before a replica looks.
        """
        now = time.monotonic()
        age_s = now - self._began_at
        if age_s >= AHEAD_WINDOW_S:
            self._last_count = self._count if age_s < 2 * AHEAD_WINDOW_S else 0
            self._count, self._began_at = 0, now
        return max(self._count, self._last_count)
