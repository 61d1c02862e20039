"""A folder with a configuration and a receiver module, and a database: what a user of outboxd has."""

from __future__ import annotations

import contextlib
import inspect
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outboxd.load import load
from outboxd.migrate import migrate
from tests import processes
from tests.eventually import PATIENCE_S, eventually

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from contextlib import AbstractAsyncContextManager

    import asyncpg

# Numbers of CONFIGURATION.
SCOPE = 1
UPDATE = 1
EVENT = 2

CONFIGURATION = """\
[scopes.ACCOUNT]
value = 1
tag = "account_id"

[categories.UPDATE]
value = 1
scope = "ACCOUNT"

[categories.EVENT]
value = 2
scope = "ACCOUNT"
coalesce = false
"""

OUTBOX = """
[[outbox]]
name = "main"
table = "outbox"
"""

# Lines of one file, appended in one write each: they outlive SIGKILL, and two processes may write them.
PRELUDE = """\
import asyncio
import json
import os
import time
from pathlib import Path

from outboxd import Discard, RetryLater, receiver

HERE = Path(__file__).parent
FILE = os.open(HERE / "deliveries", os.O_WRONLY | os.O_APPEND | os.O_CREAT)


def record(message, what="done"):
    line = {
        "what": what,
        "id": message.id,
        "shard": message.shard_identifier,
        "object": message.object_identifier,
        "attempt": message.attempt,
        "coalesced": message.coalesced,
        "pid": os.getpid(),
        "at": time.monotonic(),
    }
    os.write(FILE, (json.dumps(line) + "\\n").encode())


def is_open(name):
    return (HERE / name).exists()


async def opened(name):
    while not is_open(name):
        await asyncio.sleep(0.005)


def wait_until_opened(name):
    while not is_open(name):
        time.sleep(0.005)


"""

RECORD_ALL = """\
@receiver("UPDATE", "EVENT")
async def accept(message):
    record(message)
"""


@dataclass
class Installation:
    """One user's outboxd; `dsn` is that of a superuser, `connection` is the test's own."""

    folder: Path
    dsn: str
    connection: asyncpg.Connection
    outbox: str = OUTBOX
    categories: str = CONFIGURATION
    drain: dict[str, float] = field(default_factory=lambda: {"poll_interval_s": 0.1})

    @property
    def config(self) -> Path:
        return self.folder / "outboxd.toml"

    def configure(self, **top: str) -> None:
        """Write the configuration; *top* are keys beside or instead of `dsn`."""
        keys = {"dsn": self.dsn, **top}
        lines = [f"{key} = {json.dumps(value)}" for key, value in keys.items()]
        lines += ["[receivers]", 'modules = ["receivers"]', "[http]", 'listen = ""', "[drain]"]
        lines += [f"{key} = {value}" for key, value in self.drain.items()]
        self.config.write_text("\n".join([*lines, self.outbox, self.categories]))

    def receive(self, code: str) -> None:
        """Write the receiver module: *code* behind PRELUDE."""
        (self.folder / "receivers.py").write_text(PRELUDE + code)

    def open(self, name: str) -> None:
        """Let the receivers go on that wait until this is open."""
        (self.folder / name).touch()

    async def migrate(self, *, notify: bool = False) -> None:
        await migrate(self.connection, load(self.config, environ={}).config, notify=notify)

    def daemon(self, *arguments: str, **options: Any) -> AbstractAsyncContextManager[processes.Outboxd]:
        """Start it; the arguments and options are those of `processes.outboxd`."""
        return processes.outboxd(*arguments, config=self.config, **options)

    @contextlib.asynccontextmanager
    async def ready_daemon(self, **options: Any) -> AsyncIterator[processes.Outboxd]:
        async with self.daemon(**options) as process:
            await process.wait_for_event("daemon.ready")
            yield process

    async def run(self, *arguments: str, **options: Any) -> processes.Outboxd:
        return await processes.run(*arguments, config=self.config, **options)

    async def once(self, *arguments: str, **options: Any) -> dict[str, Any]:
        """Run `--once --json`, whatever its exit code, and return the summary."""
        process = await self.run("--once", "--json", *arguments, **options)
        assert len(process.stdout_lines) == 1, process.stdout + process.stderr
        summary: dict[str, Any] = json.loads(process.stdout)
        return summary

    async def insert(
        self, shards: Iterable[int], *, category: int = EVENT, objects: Iterable[int] = (1,), table: str = "outbox"
    ) -> list[int]:
        """Write a message for every shard and object, all in one statement; returns the ids."""
        rows = await self.connection.fetch(
            f"INSERT INTO {table} (shard_scope, shard_identifier, category, object_identifier)"
            " SELECT $1, shard, $2, object FROM unnest($3::bigint[]) AS shard, unnest($4::bigint[]) AS object"
            " RETURNING id",
            SCOPE,
            category,
            list(shards),
            list(objects),
        )
        return [row["id"] for row in rows]

    async def ids(self) -> set[int]:
        """The messages that are in the outbox."""
        return {row["id"] for row in await self.connection.fetch("SELECT id FROM outbox")}

    async def count(self, statement: str = "SELECT count(*) FROM outbox") -> int:
        number: int = await self.connection.fetchval(statement)
        return number

    async def drained(self, timeout_s: float = PATIENCE_S, *, by: processes.Outboxd) -> None:
        """Wait until the outbox is empty."""

        async def is_empty() -> bool:
            return await self.count() == 0

        await self.until(is_empty, timeout_s, by=by)

    async def until(
        self, check: Callable[[], bool | Awaitable[bool]], timeout_s: float = PATIENCE_S, *, by: processes.Outboxd
    ) -> None:
        """Wait until *check* is true; fails when *by* has ended before, and shows its log as it is then."""

        async def is_true() -> bool:
            outcome = check()
            return await outcome if inspect.isawaitable(outcome) else outcome

        async def true_or_over() -> bool:
            return await is_true() or by.returncode is not None

        try:
            await eventually(true_or_over, timeout_s)
            assert await is_true(), f"it ended with {by.returncode}"
        except AssertionError as exc:
            raise AssertionError(f"{exc}; {await self.count()} messages remain\n{by.stderr}") from exc

    def lines(self) -> list[dict[str, Any]]:
        """Everything that the receivers have recorded so far, in order."""
        file = self.folder / "deliveries"
        whole = file.read_text().rpartition("\n")[0] if file.exists() else ""  # the last line may be half written
        return [json.loads(line) for line in whole.splitlines()]

    def deliveries(self, what: str = "done") -> list[dict[str, Any]]:
        """What was recorded as this, in order."""
        return [line for line in self.lines() if line["what"] == what]

    def delivered(self, what: str = "done") -> list[int]:
        """The ids that were recorded, in order."""
        return [line["id"] for line in self.deliveries(what)]

    async def left_behind(self) -> list[str]:
        """What a process that has ended must not leave: rows of workers, advisory locks."""
        workers = await self.connection.fetch("SELECT id, died_at FROM outboxd.worker")
        locks = await self.connection.fetch(
            "SELECT classid, objid FROM pg_locks WHERE locktype = 'advisory'"
            " AND database = (SELECT oid FROM pg_database WHERE datname = current_database())"
        )
        return [f"worker {row}" for row in workers] + [f"lock {row}" for row in locks]
