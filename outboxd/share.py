"""
Which of the found shards a daemon claims first, where several daemons are alive.

All find the same shards in the same order. If each took what it finds, the second would follow close behind the first
and claim what has just been drained: two daemons were half as fast as one. So of many each takes those whose lock key
falls to it, and the others' when it has nothing else to do, or now and then: whoever seems to be alive may hang.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from outboxd.model import Candidate

SHARED_MIN = 100
"""Of fewer shards each daemon tries all: who comes first is quicker than who would have to be waited for."""
ALL_EVERY_S = 5.0


class Share:
    """
    Divides what is found among the daemons.

    Args:
        place: Tells which of how many daemons this is, from 0.
    """

    def __init__(self, place: Callable[[], tuple[int, int]]) -> None:
        self._place = place
        self._has_left = False
        self._whole_pass = -1
        self._whole_at = time.monotonic()

    def of(self, found: list[Candidate], number: int) -> list[Candidate]:
        """Return those of the found shards that are to be claimed; *number* is that of the pass."""
        index, count = self._place()
        if count < 2 or len(found) < SHARED_MIN or number == self._whole_pass:
            return found
        self._has_left = True
        return [candidate for candidate in found if candidate.lock_key % count == index]

    def end_pass(self, following: int) -> None:
        """Note the end of a pass; *following* is the number of the next one."""
        if self._age_s() >= ALL_EVERY_S:
            self.take_rest(following, 0.0)

    def take_rest(self, number: int, rest_s: float) -> bool:
        """Let this pass take everything; False where nothing was left to others, or the last such pass was just now."""
        if not self._has_left or self._age_s() < rest_s:
            return False
        self._has_left, self._whole_pass, self._whole_at = False, number, time.monotonic()
        return True

    def _age_s(self) -> float:
        return time.monotonic() - self._whole_at
