"""W0 to W3: how fast the daemon drains, beside the floor, in four shapes of load and two durabilities."""

from __future__ import annotations

from typing import TYPE_CHECKING

from bench import floor, stage
from bench.figures import Series, Table
from bench.load import Load

if TYPE_CHECKING:
    import asyncpg

    from bench.options import Options

LOADS = {
    "W0": (Load(100_000, 1, 1), 0.6),
    "W1": (Load(10_000, 10, 10), 1.0),
    "W2": (Load(1_000, 100, 10), 1.2),
    "W3": (Load(1, 100_000, 100), 1.2),
}
VARIANTS = {
    "W1 in turn": (Load(10_000, 10, 10, in_turn=True), None),
    "W1 with payloads": (Load(10_000, 10, 10, payload_bytes=200), None),
}
"""Measured with the default durability only."""


async def measure(options: Options) -> list[Table]:
    """Measure all four with the default durability, and with `synchronous_commit = off`."""
    tables = []
    for durability in ("on",) if options.quick else ("on", "off"):
        async with stage.server(synchronous_commit=durability) as (dsn, connection), stage.daemon(dsn) as daemon:
            loads = LOADS if options.quick or durability == "off" else LOADS | VARIANTS
            for name, (load, goal) in loads.items():
                chosen = load.quarter() if options.quick else load
                if durability == "on":
                    table = _table(name, f"{chosen}; default durability.", goal)
                else:
                    table = _table(f"{name}, relaxed", f"{chosen}; synchronous_commit = off.", None)
                await _measure(connection, daemon, chosen, table, options)
                tables.append(table)
    return tables


def _table(name: str, about: str, goal: float | None) -> Table:
    return Table(
        name,
        about,
        [
            Series("floor in batches, rows/s"),
            Series("floor in batches, reading what outboxd reads, rows/s"),
            Series("floor in one statement, rows/s"),
            Series("outboxd, rows/s"),
            Series("outboxd, receiver calls/s"),
            Series("outboxd / floor in batches", 2, at_least=goal),
            Series("outboxd / floor that reads what it reads", 2),
            Series("outboxd / floor in one statement", 2),
            Series("WAL, bytes a drained row", 1),
        ],
    )


async def _measure(
    connection: asyncpg.Connection, daemon: stage.Daemon, load: Load, table: Table, options: Options
) -> None:
    for number in range(options.rounds + 1):
        await connection.execute("VACUUM (ANALYZE) outbox_floor, outbox_drained")
        batches_s = await floor.by_batches(connection, load)
        await connection.execute("VACUUM (ANALYZE) outbox_floor")
        lean_s = await floor.by_lean_batches(connection, load)
        await connection.execute("VACUUM (ANALYZE) outbox_floor")
        statement_s = await floor.by_one_statement(connection, load)
        retired = await daemon.retire(connection, load)
        await stage.require_empty(connection)
        if number:  # the first round only warms caches and connections
            floors = (batches_s, lean_s, statement_s)
            ratios = [seconds / retired.seconds for seconds in floors]
            rows_s = (load.rows / seconds for seconds in (*floors, retired.seconds))
            calls_s = len(stage.delivered) / retired.seconds
            table.add(*rows_s, calls_s, *ratios, retired.wal_bytes / load.rows)
            options.say(f"{table.name} round {number}: {ratios[0]:.2f} of the floor")
