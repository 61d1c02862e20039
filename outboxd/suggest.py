"""`did you mean`: the nearest known word for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

BEGUN_MIN = 3


def nearest(word: str, known: Iterable[str]) -> str:
    """
    Return `, did you mean X?` or, where nothing is near, a list of what is known (or nothing).

    Near is what begins so, then what differs in the last part of a dotted key only, then what looks alike.
    """
    candidates = sorted(known)
    begun = [each for each in candidates if len(word) >= BEGUN_MIN and each.lower().startswith(word.lower())]
    match = begun or _beside(word, candidates) or difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if match:
        return f", did you mean {match[0]}?"
    return f" (known: {', '.join(candidates[:20])})" if candidates else ""


def _beside(word: str, candidates: Iterable[str]) -> list[str]:
    """Return the nearest key of the same parent."""
    parent, dot, last = word.rpartition(".")
    beside = {each.removeprefix(parent + dot): each for each in candidates if dot and each.startswith(parent + dot)}
    return [beside[near] for near in difflib.get_close_matches(last, beside, n=1, cutoff=0.3)]
