"""
Ids that were not there yet when higher ones were: an id is taken at the INSERT and seen at the COMMIT.

Where transactions overlap, most messages commit behind one with a higher id. A look above the highest id seen does not
see them, and the next full pass may be a second away. So gaps are looked for by their ids, as long as a transaction
runs that may fill them: most are ids that were rolled back, or delivered before the look.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import chain

MISSING_MAX = 500
"""So many at once, the latest: each costs a look 0.5 µs."""
GAP_MAX = 50
"""So many of one gap, from both ends. When one of a larger gap appears, a pass finds the others."""


class Missing:
    """Ids that are missing, each with the first transaction that began too late to fill it, and its gap."""

    def __init__(self) -> None:
        self._open: dict[int, tuple[int, int]] = {}
        self._cut: set[int] = set()

    def ids(self) -> list[int]:
        """Return what to look for."""
        return list(self._open)

    def note(self, found: Sequence[int], gaps: Sequence[tuple[int, int]], *, xmin: int, xid_next: int) -> bool:
        """
        Take what a look has seen that has asked for `ids`.

        Args:
            found: Ids that are there now.
            gaps: First ids and counts of what is missing now, ascending.
            xmin: Every transaction below had ended ...
            xid_next: ... and none from here on had begun to write, when the look was made.

        Returns:
            Whether more than was looked for may have appeared.
        """
        is_cut = not self._cut.isdisjoint({self._open.pop(id_)[1] for id_ in found})
        # Numbers that are not reached yet are of another server, from before a failover.
        for id_ in [id_ for id_, (xid, _) in self._open.items() if not xmin < xid <= xid_next]:
            del self._open[id_]
        if xmin < xid_next:  # else nothing runs that may fill them
            self._add(gaps, xid_next)
        self._cut &= {first for _, first in self._open.values()}
        return is_cut

    def _add(self, gaps: Sequence[tuple[int, int]], xid: int) -> None:
        fresh: list[dict[int, tuple[int, int]]] = []
        count = 0
        for first, size in reversed(gaps):
            if count >= MISSING_MAX:
                break
            half = GAP_MAX // 2
            parts = (range(first, first + half), range(first + size - half, first + size))
            ids = chain(*parts) if size > GAP_MAX else range(first, first + size)
            fresh.append(dict.fromkeys(ids, (xid, first)))
            count += len(fresh[-1])
            if size > GAP_MAX:
                self._cut.add(first)
        for part in reversed(fresh):
            self._open |= part
        for id_ in list(self._open)[:-MISSING_MAX]:
            self._cut.add(self._open.pop(id_)[1])
