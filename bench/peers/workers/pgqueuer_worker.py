"""PgQueuer: a QueueManager on a connection of its own, as its guide on performance has it."""

from __future__ import annotations

import asyncpg
import worker
from pgqueuer import Job, PgQueuer
from pgqueuer.db import AsyncpgDriver
from pgqueuer.queries import Queries


async def setup(settings: worker.Settings) -> None:
    connection = await asyncpg.connect()
    queries = Queries(AsyncpgDriver(connection))
    await queries.install()
    if settings.get("autovac"):  # what `pgq autovac` does
        await queries.optimize_autovacuum()
    await connection.close()


async def work(settings: worker.Settings) -> None:
    connection = await asyncpg.connect()
    queue = PgQueuer.from_asyncpg_connection(connection)

    @queue.entrypoint("bench")
    async def handle(job: Job) -> None:
        if worker.TIMED:
            worker.ran((job.payload or b"").decode())

    worker.on_stop(queue.shutdown.set)
    options = {key: value for key, value in settings.items() if key != "autovac"}
    worker.ready()
    await queue.run(**options)


worker.main(setup, work)
