"""What every workload needs: a server, tables of two outboxes (one for the floor), loads, a daemon at work."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import os
import sys
import tempfile
import time
from typing import TYPE_CHECKING, Any

import asyncpg
import msgspec
import psutil

from bench import child
from bench.errors import FailedError
from bench.load import Load, every_shard
from outboxd import log, registry
from outboxd.config import CategoryConfig, Config, DrainConfig, OutboxConfig, ScopeConfig
from outboxd.embedded import embedded_postgres
from outboxd.inspection import inspect_table
from outboxd.migrate import migrate
from outboxd.outbox import Outbox
from outboxd.pipeline import Pipeline
from outboxd.sampler import Sampler

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterator, Mapping

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
RETIRED_S_MAX = 300.0
LINE_BYTES_MAX = 2**24
"""Of what a process of ours prints: the ids of all messages in one line."""


delivered: list[int] = []
"""Ids of the messages that a receiver was given since the last `retire` began. Every receiver here notes them."""
others: list[int] = []
"""The same, of shards that `retire` does not wait for."""


@registry.receiver("ACCOUNT_UPDATE")
async def accept(message: Any) -> None:
    """Do nothing but note it, which is little: the figure is outboxd's own."""
    delivered.append(message.id)


@contextlib.asynccontextmanager
async def server(**settings: object) -> AsyncIterator[tuple[str, asyncpg.Connection]]:
    """Run a PostgreSQL of the default durability with both outboxes, and yield its DSN and a connection."""
    async with embedded_postgres(settings={"shared_buffers": "1GB", "max_wal_size": "8GB", **settings}) as dsn:
        connection = await asyncpg.connect(dsn)
        await migrate(connection, msgspec.structs.replace(CONFIG, silo_mode="monolith"), notify=True)
        try:
            yield dsn, connection
        finally:
            connection.terminate()  # what it was at when something failed is of no use


async def version() -> str:
    """Return the version of the server that is measured here: that of the wheel, or of OUTBOXD_PG_BIN."""
    async with server() as (_, connection):
        return str(await connection.fetchval("SHOW server_version"))


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
async def program(
    module: str, *arguments: object, environment: Mapping[str, str] = os.environ, stderr: int | None = None
) -> AsyncIterator[asyncio.subprocess.Process]:
    """Run a module as a process of its own, which Ctrl-C does not reach and which does not outlive the block."""
    process = await asyncio.create_subprocess_exec(
        *child.command(sys.executable, "-m", module, *map(str, arguments)),
        env=dict(environment),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=stderr,
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
            raise FailedError(f"{module} failed")
        return json.loads(stdout)


class Daemon:
    """
    A daemon at work in this process.

    Args:
        pipeline: It.
    """

    def __init__(self, pipeline: Pipeline) -> None:
        self.pipeline = pipeline

    async def retire(
        self,
        connection: asyncpg.Connection,
        load: Load,
        *,
        within: Callable[[int], bool] = every_shard,
        during: contextlib.AbstractContextManager[object] | None = None,
    ) -> Retired:
        """
        Write the load, and measure from its commit to the commit of the delete that makes all of it gone.

        Args:
            within: Tells of a shard whether it is waited for.
            during: Entered for what is measured, without the writing before it and the looking after it.

        Raises:
            FailedError: It does not come to an end, or what was delivered is not what ought to have been.
        """
        delivered.clear()
        others.clear()
        goal = self.pipeline.totals()["retired"] + load.rows_of(within)
        done = asyncio.Event()

        def look() -> None:
            if self.pipeline.totals()["retired"] >= goal + len(others):
                done.set()

        self.pipeline.live.on_progress = look
        async with connection.transaction():
            await connection.execute(load.fill("outbox_drained"))
            wal = await wal_position(connection)
            last = await connection.fetchval("SELECT max(id) FROM outbox_drained")
        with during or contextlib.nullcontext():
            started_at = time.perf_counter()
            try:
                await asyncio.wait_for(done.wait(), RETIRED_S_MAX)
            except TimeoutError:
                raise FailedError(f"after {RETIRED_S_MAX:.0f} s not all is gone of {load}") from None
            seconds = time.perf_counter() - started_at
        retired = Retired(seconds, await wal_position(connection) - wal)
        self.pipeline.live.on_progress = None
        load.check(delivered, last - load.rows + 1, within=within)
        return retired


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
    """Raise FailedError unless everything was deleted."""
    left = await connection.fetchval(f"SELECT count(*) FROM {table}")
    if left:
        raise FailedError(f"{left} rows were left behind in {table}")


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
    for session in postmaster.children():
        with contextlib.suppress(psutil.NoSuchProcess):
            times = session.cpu_times()
            seconds += times.user + times.system
    return float(seconds)
