"""Oban for Python: an instance with one queue."""

from __future__ import annotations

import os

import oban_jobs
import worker
from oban import Oban
from oban.schema import install

assert oban_jobs.Bench  # registered by being imported


async def setup(_: worker.Settings) -> None:
    pool = await Oban.create_pool("host=" + os.environ["PGHOST"])
    await install(pool)
    await pool.close()


async def work(settings: worker.Settings) -> None:
    pool = await Oban.create_pool("host=" + os.environ["PGHOST"])
    async with Oban(pool=pool, queues={"default": settings["queue"]}):
        worker.ready()
        await worker.stopped()
    await pool.close()


worker.main(setup, work)
