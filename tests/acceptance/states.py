"""
The states that the documents' examples begin in: `tests.trouble`, some hours old, and what somebody may find beside it.

| state               | is                                                                                       |
|---------------------|------------------------------------------------------------------------------------------|
| trouble             | the database with all kinds of trouble but the open transaction, and no daemon           |
| open transaction    | the same, with the open transaction                                                      |
| daemon              | trouble, with a daemon, which has delivered whatever can be delivered                    |
| receiver down       | the same, and 12 more shards in which MEMBER fails                                       |
| backfill            | trouble, with a table account of 25 000 rows that is to be walked                        |
| database away       | a daemon that waits for its database                                                     |
| wrong configuration | the configuration of trouble with two mistakes in it                                     |
"""

from __future__ import annotations

import contextlib
import functools
import os
import socket
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests import processes, terminal
from tests.acceptance.servers import free_port
from tests.console import COLUMNS
from tests.drains import write
from tests.eventually import eventually
from tests.processes import ROOT
from tests.trouble import TOML, troubled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable
    from contextlib import AbstractAsyncContextManager

    import asyncpg

    from tests.processes import Outboxd

AUTHOR, HOST, FOLDER = "alice", "host-1", "/etc/outboxd"
BROKEN_SHARDS = range(101, 113)
MODEL = """
[[model]]
table = "account"
outbox = "region"
category = "TEAM"
shard_identifier = "id"
"""


@dataclass
class State:
    """
    Where somebody types commands.

    Attributes:
        folder: With the configuration, `outboxd.toml`, and a program `outboxd`, which is this checkout's.
    """

    folder: Path
    dsn: str
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        program = self.folder / "bin" / "outboxd"
        program.parent.mkdir()
        program.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m outboxd "$@"\n')
        program.chmod(0o755)
        self.env = {
            "OUTBOX_CONFIG": str(self.file),
            "OUTBOX_HTTP_LISTEN": f"127.0.0.1:{free_port()}",
            "PATH": f"{program.parent}:{os.environ['PATH']}",
            "PYTHONPATH": str(ROOT),
            "SUDO_USER": AUTHOR,
        }

    @property
    def file(self) -> Path:
        return self.folder / "outboxd.toml"

    @property
    def names(self) -> dict[str, str]:
        """What is called here so, and otherwise in the documents."""
        parts = urlsplit(self.dsn)
        return {
            str(self.folder): FOLDER,
            f"database {parts.path[1:]}": "database shop",
            f"role {parts.username}": "role outbox",
            f" on {socket.gethostname()}": f" on {HOST}",
            f"@{socket.gethostname()}": f"@{HOST}",
        }

    async def type(self, line: str, *, answer: str = "") -> str:
        """Type a line in a shell, and return what is on the terminal then."""
        _, shown = await terminal.on_terminal(
            ["bash", "-c", line], env=self.env, cwd=self.folder, answer=answer, columns=COLUMNS
        )
        return terminal.STYLE.sub("", shown).replace("\r\n", "\n")

    @contextlib.asynccontextmanager
    async def daemon(self) -> AsyncIterator[Outboxd]:
        async with processes.outboxd(config=self.file, env=self.env) as running:
            yield running


@contextlib.asynccontextmanager
async def in_state(name: str, dsn: str, folder: Path) -> AsyncIterator[State]:
    """Bring a database into a state, and keep it there while the block lasts."""
    state = State(folder, dsn)
    async with _STATES[name](state):
        yield state


@contextlib.asynccontextmanager
async def _trouble(state: State, *, is_open: bool = False) -> AsyncIterator[asyncpg.Connection]:
    async with troubled(state.dsn, state.folder, is_open=is_open) as trouble:
        await _grow_old(trouble.connection)
        yield trouble.connection


async def _grow_old(connection: asyncpg.Connection) -> None:
    """Let what fails have been written two hours ago, and have been tried ten minutes ago; the rest an hour ago."""
    for table in ("outbox", "control_outbox"):
        await connection.execute(
            f"UPDATE {table} SET date_added = now() - interval '2 hours',"
            " scheduled_from = scheduled_from - interval '10 minutes',"
            " scheduled_for = scheduled_for - interval '10 minutes'"
            " WHERE scheduled_for BETWEEN now() AND now() + interval '2 hours'"
        )
        await connection.execute(
            f"UPDATE {table} SET date_added = now() - interval '1 hour', scheduled_from = now() - interval '1 hour',"
            " scheduled_for = now() - interval '1 hour' WHERE scheduled_for < now()"
        )
    await connection.execute(
        "UPDATE outboxd.failure SET first_failed_at = now() - interval '2 hours',"
        " last_failed_at = last_failed_at - interval '10 minutes'"
    )


@contextlib.asynccontextmanager
async def _daemon(state: State) -> AsyncIterator[asyncpg.Connection]:
    async with _trouble(state) as connection:
        # A death that nobody has noticed would put the daemon into prepared mode.
        await connection.execute("UPDATE outboxd.worker SET died_at = now() - interval '1 hour'")
        async with state.daemon() as daemon:
            await daemon.wait_for_event("daemon.ready")

            async def has_settled() -> bool:
                waiting = await connection.fetch(
                    "SELECT DISTINCT shard_identifier AS shard FROM outbox WHERE scheduled_for < now() ORDER BY 1"
                )
                return [row["shard"] for row in waiting] == [5, 6, 7]  # they are switched off

            await eventually(has_settled, error=daemon.stderr)
            yield connection


@contextlib.asynccontextmanager
async def _receiver_down(state: State) -> AsyncIterator[None]:
    async with _daemon(state) as connection:
        for shard in BROKEN_SHARDS:
            await write(connection, shard=shard, obj=31)

        async def everything_fails() -> bool:
            count = await connection.fetchval("SELECT count(*) FROM outboxd.failure WHERE category = 1")
            return bool(count == 1 + len(BROKEN_SHARDS))

        await eventually(everything_fails)
        await connection.execute(  # as if it had been so for a while: a first failure is tried again in two seconds
            "UPDATE outbox SET scheduled_for = now() + interval '30 minutes' WHERE shard_identifier = ANY ($1)",
            list(BROKEN_SHARDS),
        )
        yield


@contextlib.asynccontextmanager
async def _backfill(state: State) -> AsyncIterator[None]:
    async with _trouble(state) as connection:
        await connection.execute("CREATE TABLE account (id bigint PRIMARY KEY)")
        await connection.execute("INSERT INTO account SELECT generate_series(1, 25000)")
        await connection.execute("ANALYZE account")
        state.file.write_text(state.file.read_text() + MODEL)
        yield


@contextlib.asynccontextmanager
async def _database_away(state: State) -> AsyncIterator[None]:
    state.file.write_text(TOML.format(dsn=f"postgresql://outbox@127.0.0.1:{free_port()}/shop"))
    async with state.daemon() as daemon:
        await daemon.wait_for_event("daemon.waiting")
        yield


@contextlib.asynccontextmanager
async def _wrong_configuration(state: State) -> AsyncIterator[None]:
    text = TOML.format(dsn=state.dsn)
    state.file.write_text(text.replace("poll_interval_s", "pol_interval_s").replace('"skip"', '"pass"'))
    yield


_STATES: dict[str, Callable[[State], AbstractAsyncContextManager[Any]]] = {
    "trouble": _trouble,
    "open transaction": functools.partial(_trouble, is_open=True),
    "daemon": _daemon,
    "receiver down": _receiver_down,
    "backfill": _backfill,
    "database away": _database_away,
    "wrong configuration": _wrong_configuration,
}
