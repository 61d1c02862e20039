"""What is held: shards and objects whose last attempt failed, and whose next one is not to be made yet."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outboxd.turn import CATEGORY, OBJECT

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    from outboxd.live import Live
    from outboxd.model import KnownFailure
    from outboxd.turn import Group


def blocking(failures: Iterable[KnownFailure], live: Live, wakes_after_s: float) -> tuple[float, KnownFailure | None]:
    """
    Tell for how many seconds a shard is held, and by which failure; 0 and None when it may be tried.

    Args:
        failures: Known of its objects.
        live: Which categories block their shard.
        wakes_after_s: How long after the last attempt a due message wakes it.
    """
    holding = [(f.held_for_s(wakes_after_s), f) for f in failures if live.blocks(f.category)]
    held_for_s, failure = max(holding, key=lambda each: each[0], default=(0.0, None))
    return (held_for_s, failure) if held_for_s > 0 else (0.0, None)


def set_apart(groups: Iterable[Group], failures: Sequence[KnownFailure], live: Live) -> tuple[list[Group], float]:
    """
    Tell each group what is known of its object, and leave out those that are held.

    Returns:
        The groups to deliver, and the seconds until the first of the others may be tried.
    """
    by_object = {(f.category, f.object_identifier): f for f in failures}
    apart = live.registry.apart
    free, rests = [], []
    for group in groups:
        known = by_object.get((group.newest[CATEGORY], str(group.newest[OBJECT])))
        # Of messages that stand apart the failure is one's own; the object waits as a whole.
        if known is not None and (group.newest[CATEGORY] not in apart or known.message_id in group.ids):
            group.known = known
        held_for_s = known.held_for_s(live.drain.retry_on_new_message_s) if known else 0.0
        if held_for_s > 0:
            rests.append(held_for_s)
        else:
            free.append(group)
    return free, min(rests, default=0.0)
