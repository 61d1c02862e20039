"""What Oban runs: it imports workers by their names."""

from __future__ import annotations

import worker
from oban import Job
from oban import worker as oban_worker


@oban_worker(queue="default")
class Bench:
    async def process(self, job: Job) -> None:
        worker.ran(job.args["n"])
