"""`did you mean`: the nearest known word for a mistyped one."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


def nearest(word: str, known: Iterable[str]) -> str:
    """Return `, did you mean X?` or, where nothing is near, a list of what is known (or nothing)."""
    candidates = sorted(known)
    match = difflib.get_close_matches(word, candidates, n=1, cutoff=0.6)
    if match:
        return f", did you mean {match[0]}?"
    return f" (known: {', '.join(candidates[:20])})" if candidates else ""
