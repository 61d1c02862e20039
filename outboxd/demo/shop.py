"""
The application of the demo: a shop whose orders and members keep changing.

Each change and its message are written in one transaction, with plain SQL: that is all that an outbox asks for.
The statements stand here and not in a .sql file because that is how an application would write them.
"""

from __future__ import annotations

import asyncio
import json
import random
from typing import TYPE_CHECKING, Any

import anyio

from outboxd import session

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config

CLERKS = 4
STORES = 25
ORDERS = 400
MEMBERS = 3_000
REGULARS = 400
"""Members who come. The others never change: their only messages are those of the backfill."""
PAUSE_S = (0.002, 0.018)
CHANGES_MAX = 4

SCHEMA = """
CREATE TABLE IF NOT EXISTS shop_order (
    id bigint PRIMARY KEY,
    store_id bigint NOT NULL,
    quantity integer NOT NULL DEFAULT 1,
    paid integer NOT NULL DEFAULT 0
);
CREATE TABLE IF NOT EXISTS shop_member (
    id bigint PRIMARY KEY,
    visits integer NOT NULL DEFAULT 0
);
"""

FILL_ORDERS = """
INSERT INTO shop_order (id, store_id) SELECT n, n % $2 + 1 FROM generate_series(1, $1) AS n ON CONFLICT DO NOTHING
"""
FILL_MEMBERS = """
INSERT INTO shop_member (id) SELECT n FROM generate_series(1, $1) AS n ON CONFLICT DO NOTHING
"""

CHANGE_ORDER = "UPDATE shop_order SET quantity = quantity + 1 WHERE id = $1 RETURNING store_id AS shard, quantity"
PAY_ORDER = "UPDATE shop_order SET paid = paid + 1 WHERE id = $1 RETURNING store_id AS shard, paid"
CHANGE_MEMBER = "UPDATE shop_member SET visits = visits + 1 WHERE id = $1 RETURNING id AS shard, visits"

WRITE_MESSAGE = """
INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, payload)
VALUES ($1, $2, $3, $4, $5)
"""


class Shop:
    """
    Its clerks, each on a connection of its own.

    Args:
        dsn: The database.
        config: Knows the numbers of scopes and categories.

    Attributes:
        written: Messages committed so far.
        transactions: Transactions that held them.
    """

    def __init__(self, dsn: str, config: Config) -> None:
        self._dsn = dsn
        self._config = config
        self._dice = random.Random()  # noqa: S311  a play, not a cipher
        self._closed = asyncio.Event()
        self.written = 0
        self.transactions = 0

    async def open(self) -> None:
        """Create the shop's own tables; its members are older than the daemon."""
        connection = await session.connect(self._dsn, name="shop")
        try:
            await connection.execute(SCHEMA)
            await connection.execute(FILL_ORDERS, ORDERS, STORES)
            await connection.execute(FILL_MEMBERS, MEMBERS)
        finally:
            await session.close_quietly(connection)

    async def run(self) -> None:
        """Write until closed; what was begun is committed and counted."""
        async with anyio.create_task_group() as clerks:
            for _ in range(CLERKS):
                clerks.start_soon(self._clerk)

    def close(self) -> None:
        """Let the clerks end after the transaction they are in."""
        self._closed.set()

    async def _clerk(self) -> None:
        connection = await session.connect(self._dsn, name="shop")
        try:
            while not self._closed.is_set():
                await self._serve(connection)
        except Exception as exc:
            raise session.translate(exc, "the shop") from exc
        finally:
            await session.close_quietly(connection)

    async def _serve(self, connection: asyncpg.Connection) -> None:
        """Change one thing a few times, as people do."""
        changes = self._dice.randint(1, CHANGES_MAX)
        order, member = self._dice.randint(1, ORDERS), self._dice.randint(1, REGULARS)
        for number in range(changes):
            if self._closed.is_set():
                return
            async with connection.transaction():
                if member % 2:
                    written = await self._change(connection, CHANGE_MEMBER, "MEMBER_UPDATE", member)
                else:
                    written = await self._change(connection, CHANGE_ORDER, "ORDER_UPDATE", order)
                    if number == changes - 1:
                        written += await self._change(connection, PAY_ORDER, "ORDER_PAID", order)
            self.written += written
            self.transactions += 1
            await self._pause()

    async def _change(self, connection: asyncpg.Connection, change: str, category: str, identifier: int) -> int:
        """Change a row and write the message about it; both become visible with the same COMMIT."""
        row = await connection.fetchrow(change, identifier)
        assert row is not None
        payload: dict[str, Any] = {key: value for key, value in row.items() if key != "shard"}
        kind = self._config.categories[category]
        scope = self._config.scopes[kind.scope].value
        await connection.execute(WRITE_MESSAGE, scope, row["shard"], kind.value, identifier, json.dumps(payload))
        return 1

    async def _pause(self) -> None:
        with anyio.move_on_after(self._dice.uniform(*PAUSE_S)):
            await self._closed.wait()
