"""`outboxd backfill` in tests: a configuration to run it with, and what it meets."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

from tests import terminal
from tests.processes import Outboxd, run

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

VERSION_OPTION = "outbox_replication.organizationmember.replication_version"
REGIONS_OPTION = "outbox_replication.organizationmember.backfill.target_regions"
MEMBER = {
    "table": "organizationmember",
    "outbox": "region",
    "category": "MEMBER",
    "shard_identifier": "organization_id",
}
TOML = """
dsn = "{dsn}"
redis_url = "{redis_url}"

[backfill]
state = "{state}"
backfills_per_minute = {rate}

[receivers]
modules = {modules}

[scopes.ORGANIZATION_SCOPE]
value = 0

[categories.MEMBER]
value = 1
scope = "ORGANIZATION_SCOPE"

[[outbox]]
name = "region"
table = "outbox"

[[outbox]]
name = "control"
table = "control_outbox"
silo = "control"
sharding_columns = ["region_name", "shard_scope", "shard_identifier"]

[[outbox]]
name = "uuid"
table = "uuid_outbox"
key_type = "uuid"
"""
RECEIVER = """
from outboxd import receiver

@receiver("MEMBER")
async def accept(message):
    print("accepted", message.object_identifier)
    if message.object_identifier in {failing}:
        raise ValueError("not this one")
"""


class Here:
    """A folder with a configuration, and a database."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.file = folder / "outboxd.toml"
        self.dsn = dsn

    def configure(
        self,
        *models: dict[str, Any],
        rate: int = 10_000,
        redis_url: str = "",
        receives: bool = False,
        failing: tuple[int, ...] = (),
    ) -> None:
        """Write the configuration; the model of members when none is given."""
        values = {"dsn": self.dsn, "redis_url": redis_url, "state": "redis" if redis_url else "postgres", "rate": rate}
        modules = '["member_receiver"]' if receives else "[]"
        if receives:
            (self.file.parent / "member_receiver.py").write_text(RECEIVER.format(failing=list(failing)))
        lines = [TOML.format(**values, modules=modules)]
        for each in models or (MEMBER,):
            lines += ["[[model]]", *(f"{key} = {json.dumps(value)}" for key, value in each.items())]
        self.file.write_text("\n".join(lines))

    async def run(self, *arguments: str, **options: Any) -> Outboxd:
        done = await run("backfill", *arguments, config=self.file, **options)
        assert "Traceback" not in done.stderr
        return done

    async def json(self, *arguments: str, code: int = 0, **options: Any) -> list[dict[str, Any]]:
        done = await self.run(*arguments, "--json", **options)
        assert done.returncode == code, done.stderr
        document: list[dict[str, Any]] = json.loads(done.stdout)
        return document

    async def one(self, *arguments: str, code: int = 0, **options: Any) -> dict[str, Any]:
        (only,) = await self.json(*arguments, code=code, **options)
        return only


async def pause(connection: asyncpg.Connection, table: str | None = "organizationmember") -> None:
    await connection.execute("INSERT INTO outboxd.pause (kind, table_name) VALUES ('backfill', $1)", table)


async def set_watermark(connection: asyncpg.Connection, low_bound: str, version: int) -> None:
    await connection.execute(
        "INSERT INTO outboxd.backfill_watermark (table_name, low_bound, version) VALUES ('organizationmember', $1, $2)",
        low_bound,
        version,
    )


async def everything_written(connection: asyncpg.Connection) -> list[Any]:
    """Whatever a backfill may write."""
    tables = ("outbox", "control_outbox", "uuid_outbox", "outboxd.backfill_watermark", "outboxd.backfill_spending")
    return [await connection.fetch(f"SELECT * FROM {table} ORDER BY 1") for table in tables]


async def on_a_terminal(here: Here, *arguments: str, answer: str = "") -> str:
    """Run it on a terminal, and return what is there at the end."""
    return await terminal.run(here.file, "backfill", *arguments, answer=answer)
