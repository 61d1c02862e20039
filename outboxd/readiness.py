"""
Whether the drain works, as `/readyz` says it (I13): judged by what the loops have done, never by a timer of its own.

Ready is a process whose database answers and whose outboxes were each looked at, settled, or delivered from, lately.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from outboxd.branch import Branch
    from outboxd.pipeline import Pipeline

WINDOW_S_MIN = 15.0
WINDOW_POLLS = 10


def reasons(pipeline: Pipeline) -> list[str]:
    """Tell why the pipeline is not ready, a sentence each; empty when it is."""
    live = pipeline.live
    if live.stopping:
        return ["it is stopping"]
    window_s = max(WINDOW_S_MIN, WINDOW_POLLS * live.poll_interval_s)
    if pipeline.lacking:
        return [f"it waits: {pipeline.lacking}"]
    if not pipeline.claims.is_open:
        if pipeline.claims.lost_by:
            return [f"the claim session is lost: {pipeline.claims.lost_by}"]
        return ["the database cannot be reached, or is not migrated: the claim session is not open"]
    if pipeline.claims.answered_s_ago() > window_s:
        return [f"the database has not answered for {pipeline.claims.answered_s_ago():.0f} s"]
    return [reason for branch in pipeline.branches if (reason := _reason(branch, window_s, pipeline))]


def _reason(branch: Branch, window_s: float, pipeline: Pipeline) -> str:
    name = branch.config.name
    if branch.scheduler is None or branch.settler is None or branch.lane is None:
        return f"outbox {name} has not been found fit to be drained"
    looked_at = branch.scheduler.finder.looked_at
    if not looked_at:  # the clock may begin with the machine, less than a window ago
        return f"outbox {name} has not been looked at yet"
    if time.monotonic() - max(looked_at, branch.settler.settled_at) <= window_s:
        return ""
    # With receivers inside their timeout nothing is wrong, even if they keep the drainers from other outboxes.
    if pipeline.live.is_delivering() and (branch.lane.is_busy or pipeline.drain.queue.wants_drainer(branch.lane)):
        return ""
    return f"no look for due shards of outbox {name} has finished for {time.monotonic() - looked_at:.0f} s"
