"""
Ids that were not there yet when higher ones were: an id is taken at the INSERT and seen at the COMMIT.

Where transactions overlap, most messages commit behind one with a higher id. A look above the highest id seen does not
see them, and the next full pass may be a second away. So gaps are looked for by their ids, for a while: a transaction
that was rolled back leaves one for ever.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence

MISSING_S = 5.0
"""For so long; what takes longer to commit is found by a pass."""
MISSING_MAX = 500
"""So many at once, the latest: each costs a look 0.5 µs."""
GAP_MAX = 50
"""So many of one gap. When one of a larger gap appears, a pass finds the others."""


class Missing:
    """Ids that are missing, each with the time until which it is looked for (monotonic seconds)."""

    def __init__(self) -> None:
        self._until: dict[int, float] = {}
        self._cut: set[int] = set()

    def ids(self) -> list[int]:
        """Return what to look for; what has been looked for long enough is forgotten."""
        now = time.monotonic()
        for id_ in [id_ for id_, until in self._until.items() if until <= now]:
            self._forget(id_)
        return list(self._until)

    def note(self, found: Sequence[int], gaps: Iterable[tuple[int, int]]) -> bool:
        """
        Take what a look has seen.

        Args:
            found: Ids that are there now.
            gaps: First ids and counts of what is missing now.

        Returns:
            Whether more than was looked for may have appeared.
        """
        is_cut = not self._cut.isdisjoint(found)
        for id_ in found:
            self._forget(id_)
        until = time.monotonic() + MISSING_S
        for first, count in gaps:
            ids = range(first, first + min(count, GAP_MAX))
            self._until.update(dict.fromkeys(ids, until))
            if count > GAP_MAX:
                self._cut.update(ids)
        for id_ in list(self._until)[:-MISSING_MAX]:
            self._forget(id_)
        return is_cut

    def _forget(self, id_: int) -> None:
        self._until.pop(id_, None)
        self._cut.discard(id_)
