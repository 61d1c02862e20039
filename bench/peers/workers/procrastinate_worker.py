"""Procrastinate: an app with one task and its asynchronous worker."""

from __future__ import annotations

import worker
from procrastinate import App, PsycopgConnector


def make(settings: worker.Settings) -> App:
    # A connection for each job at once, and some for LISTEN and heartbeats; its own default is psycopg's of 4.
    size = settings.pop("pool_size", None)
    app = App(connector=PsycopgConnector(**({"min_size": size, "max_size": size} if size else {})))

    @app.task(name="bench")
    async def handle(n: int) -> None:
        worker.ran(n)

    return app


async def setup(settings: worker.Settings) -> None:
    app = make(settings)
    async with app.open_async():
        await app.schema_manager.apply_schema_async()


async def work(settings: worker.Settings) -> None:
    app = make(settings)
    async with app.open_async():
        worker.ready()
        await app.run_worker_async(**settings)


worker.main(setup, work)
