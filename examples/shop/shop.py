"""
A shop in which accounts change their plan, once a second: the application of deploy/compose.yaml.

A change and the message that tells of it are one statement here, and so one transaction. What matters is that both
are committed, or neither.
"""

import asyncio
import os
import random
import signal
from pathlib import Path

import asyncpg

ACCOUNTS = 20
PLANS = ("free", "pro", "team")

TABLE = "CREATE TABLE IF NOT EXISTS account (id bigint PRIMARY KEY, plan text NOT NULL)"

# The numbers are those of outboxd.toml: scope ACCOUNT, category ACCOUNT_UPDATE.
CHANGE = """
WITH changed AS (
    INSERT INTO account (id, plan) VALUES ($1, $2)
    ON CONFLICT (id) DO UPDATE SET plan = excluded.plan
    RETURNING id, plan
)
INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, payload)
SELECT 1, id, 1, id, jsonb_build_object('plan', plan) FROM changed
"""


async def main(dsn: str) -> None:
    stopping = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, stopping.set)
    connection = await asyncpg.connect(dsn)
    await connection.execute(TABLE)
    while not stopping.is_set():
        await connection.execute(CHANGE, random.randint(1, ACCOUNTS), random.choice(PLANS))
        try:
            async with asyncio.timeout(1):
                await stopping.wait()
        except TimeoutError:
            pass
    await connection.close()


if __name__ == "__main__":
    asyncio.run(main(Path(os.environ["SHOP_DSN_FILE"]).read_text().strip()))
