"""faststream-outbox: a broker on the outbox table with one subscriber."""

from __future__ import annotations

import logging

import worker
from faststream import FastStream
from faststream_outbox import OutboxBroker, make_outbox_table, outbox_autovacuum_ddl
from sqlalchemy import MetaData, text
from sqlalchemy.ext.asyncio import create_async_engine

metadata = MetaData()
table = make_outbox_table(metadata, table_name="outbox")
DSN = "postgresql+asyncpg://"


async def setup(settings: worker.Settings) -> None:
    engine = create_async_engine(DSN)
    async with engine.begin() as connection:
        await connection.run_sync(metadata.create_all)
        if settings.get("autovacuum"):
            await connection.execute(text(outbox_autovacuum_ddl("outbox")))
    await engine.dispose()


async def work(settings: worker.Settings) -> None:
    engine = create_async_engine(DSN, **settings.get("engine", {}))
    quiet = {"log_level": logging.WARNING} if settings.get("quiet") else {}
    broker = OutboxBroker(engine, outbox_table=table, **quiet)

    @broker.subscriber("bench", **settings.get("subscriber", {}))
    async def handle(n: int) -> None:
        worker.ran(n)

    app = FastStream(broker)

    @app.after_startup
    async def started() -> None:
        worker.ready()

    await app.run(log_level=logging.WARNING)
    await engine.dispose()


worker.main(setup, work)
