"""What every workload needs: a server, tables of two outboxes (one for the floor), loads, a daemon at work."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import psutil

from outboxd import log, registry
from outboxd.config import CategoryConfig, Config, DrainConfig, OutboxConfig, ScopeConfig
from outboxd.embedded import embedded_postgres
from outboxd.inspection import inspect_table
from outboxd.migrate import migrate
from outboxd.outbox import Outbox
from outboxd.pipeline import Pipeline
from outboxd.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator

CONFIG = Config(
    silo_mode="region",
    outbox=[
        OutboxConfig(name="drained", table="outbox_drained", silo="region"),
        # Of the other silo: the daemon leaves it alone, and the floor has a table of the same shape to itself.
        OutboxConfig(name="floor", table="outbox_floor", silo="control"),
    ],
    scopes={"ACCOUNT": ScopeConfig(value=0)},
    categories={"ACCOUNT_UPDATE": CategoryConfig(value=1, scope="ACCOUNT")},
)
FILL = """
INSERT INTO {table} (shard_scope, shard_identifier, category, object_identifier, payload, date_added)
SELECT 0, shard, 1, shard * {objects} + i % {objects}, {payload}, clock_timestamp()
FROM generate_series(0, {shards} - 1) AS shard, generate_series(0, {rows} - 1) AS i
ORDER BY {order}
"""
"""Each message has a time of its own, as those of different transactions have."""
LINE_BYTES_MAX = 2**24
"""Of what a process of ours prints: the ids of all messages in one line."""


@dataclasses.dataclass(frozen=True)
class Load:
    """
    How many shards, with how many messages each, about how many objects each (fewer than messages: coalescing).

    Args:
        in_turn: Written a message for each shard, and then the next: a shard's rows are not neighbours in the table.
        payload_bytes: Of the string in each payload; 0: no payload.
    """

    shards: int
    messages: int
    objects: int
    in_turn: bool = False
    payload_bytes: int = 0

    @property
    def rows(self) -> int:
        """Messages in all."""
        return self.shards * self.messages

    def quarter(self) -> Load:
        """Return one with a quarter of the messages: of the shards, or in the only one."""
        if self.shards == 1:
            return dataclasses.replace(self, messages=self.messages // 4)
        return dataclasses.replace(self, shards=self.shards // 4)

    def fill(self, table: str) -> str:
        """Return the INSERT that writes it."""
        payload = f"jsonb_build_object('name', repeat('x', {self.payload_bytes}))" if self.payload_bytes else "NULL"
        order = "i, shard" if self.in_turn else "shard, i"
        return FILL.format(
            table=table, rows=self.messages, shards=self.shards, objects=self.objects, payload=payload, order=order
        )

    def __str__(self) -> str:
        shards = f"{self.shards:,} shards" if self.shards > 1 else "one shard"
        order = ", the shards in turn" if self.in_turn else ""
        content = f", payloads of {self.payload_bytes} bytes" if self.payload_bytes else ""
        return f"{self.rows:,} messages in {shards} about {self.shards * self.objects:,} objects{order}{content}"


@registry.receiver("ACCOUNT_UPDATE")
async def accept(message: object) -> None:
    """Do nothing: the figure is outboxd's own."""


@contextlib.asynccontextmanager
async def server(**settings: object) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """Run a PostgreSQL of the default durability with both outboxes, and yield its DSN and a connection."""
    async with embedded_postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB", **settings}) as dsn:
        connection = await asyncpg.connect(dsn)
        await migrate(connection, msgspec.structs.replace(CONFIG, silo_mode="monolith"), notify=True)
        yield dsn, connection
        await connection.close()


@contextlib.contextmanager
def log_to_a_file() -> Iterator[None]:
    """Let the daemon write its log, which is part of what it costs, but not to the terminal."""
    with tempfile.TemporaryFile("w") as lines:
        log.configure("json", "warning", stream=lines)
        try:
            yield
        finally:
            log.configure("json", "warning")


@contextlib.asynccontextmanager
async def daemon(
    dsn: str, receiver: Callable[..., object] = accept, *, drain: DrainConfig | None = None
) -> AsyncIterator[Daemon]:
    """Run a daemon's pipeline in this process, counting and sampled as one that is scraped; the block begins idle."""
    config = msgspec.structs.replace(CONFIG, drain=drain or DrainConfig())
    pipeline = Pipeline(config, registry.build(config, [receiver]), lambda: dsn)
    await pipeline.open()
    for branch in pipeline.branches:
        branch.meter.timed = True
    async with asyncio.TaskGroup() as tasks:
        running = tasks.create_task(pipeline.run(Sampler(pipeline).run))
        await pipeline.ready()
        yield Daemon(pipeline)
        pipeline.stop()
        await running


@contextlib.asynccontextmanager
async def program(module: str, *arguments: object) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module as a process of its own, which Ctrl-C does not reach and which does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", module, *map(str, arguments)),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        limit=LINE_BYTES_MAX,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.kill()


async def produced_by(module: str, *arguments: object) -> Any:
    """Run a module that writes messages, and return what it tells of them: JSON on stdout."""
    async with program(module, *arguments) as process:
        stdout, _ = await process.communicate()
        if process.returncode:
            raise SystemExit(f"{module} failed")
        return json.loads(stdout)


class Daemon:
    """
    A daemon at work in this process.

    Args:
        pipeline: It.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    async def retire(self, connection: asyncpg.Connection, fill: str, rows: int) -> Retired:
        """Write what *fill* says, and measure from its commit to the commit of the delete that makes *rows* gone."""
        goal = self.pipeline.totals()["retired"] + rows
        done = asyncio.Event()

        def look() -> None:
            if self.pipeline.totals()["retired"] >= goal:
                done.set()

        self.pipeline.live.on_progress = look
        async with connection.transaction():
            await connection.execute(fill)
            wal = await wal_position(connection)
        started_at = time.perf_counter()
        await done.wait()
        seconds = time.perf_counter() - started_at
        self.pipeline.live.on_progress = None
        return Retired(seconds, await wal_position(connection) - wal)


@dataclasses.dataclass(frozen=True)
class Retired:
    """How long it took until all was gone, and the WAL that was written meanwhile."""

    seconds: float
    wal_bytes: int


async def outbox(dsn: str, connection: asyncpg.Connection) -> Outbox:
    """Return the drained outbox's statements, on sessions of their own."""
    table = await inspect_table(connection, CONFIG.outbox[0])
    return Outbox("drained", table, schema=CONFIG.schema, dsn=lambda: dsn)


async def until_empty(connection: asyncpg.Connection, table: str = "outbox_drained") -> None:
    """Look every 5 ms; by the index from above, because from below each look would walk over all that is deleted."""
    while await connection.fetchval(f"SELECT id FROM {table} ORDER BY id DESC LIMIT 1"):  # noqa: ASYNC110
        await asyncio.sleep(0.005)


async def require_empty(connection: asyncpg.Connection, table: str = "outbox_drained") -> None:
    """End the program unless everything was deleted."""
    left = await connection.fetchval(f"SELECT count(*) FROM {table}")
    if left:
        raise SystemExit(f"{left} rows were left behind in {table}")


async def wal_position(connection: asyncpg.Connection) -> int:
    """Return how many bytes of WAL were ever written."""
    return int(await connection.fetchval("SELECT pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')"))


async def database_cpu_s(connection: asyncpg.Connection) -> float:
    """Return the processor seconds that the server has used, with those of its sessions that have ended."""
    folder = await connection.fetchval("SHOW data_directory")
    with open(f"{folder}/postmaster.pid") as file:  # noqa: ASYNC230  two lines of a local file
        postmaster = psutil.Process(int(file.readline()))
    own = postmaster.cpu_times()
    seconds = own.user + own.system + own.children_user + own.children_system
    for child in postmaster.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = child.cpu_times()
            seconds += times.user + times.system
    return float(seconds)
