"""How long a shard waits after a failure: pure functions of the failed message's own schedule."""

from __future__ import annotations

import datetime as dt

DELAY_MIN = dt.timedelta(seconds=1)
DELAY_MAX = dt.timedelta(hours=1)


def last_delay(scheduled_from: dt.datetime, scheduled_for: dt.datetime) -> dt.timedelta:
    """
    Tell the delay that a message has just waited: at least one second.

    A message that was due when it was written lies in the past of its own `scheduled_from`; it
    counts as one second, so that the first failure waits two.
    """
    return max(scheduled_for - scheduled_from, DELAY_MIN)


def next_schedule(
    scheduled_from: dt.datetime, scheduled_for: dt.datetime, retry_later_s: float | None = None
) -> dt.timedelta:
    """
    Tell the delay before the next try: twice the last one, at most one hour.

    Args:
        scheduled_from: When the failed attempt was scheduled.
        scheduled_for: What it was scheduled for.
        retry_later_s: A delay that the receiver chose; it wins, whatever its size.
    """
    if retry_later_s is not None:
        return dt.timedelta(seconds=retry_later_s)
    # Compared before doubling: a schedule centuries ahead must not overflow.
    return (
        DELAY_MAX
        if last_delay(scheduled_from, scheduled_for) >= DELAY_MAX / 2
        else (2 * last_delay(scheduled_from, scheduled_for))
    )
