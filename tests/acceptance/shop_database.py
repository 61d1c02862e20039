"""The database of docs/postgresql.md: its roles are made by the SQL that stands there, and log in with passwords."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import asyncpg

from tests import processes
from tests.processes import ROOT

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    from tests.acceptance.servers import ScramServer

DOCUMENT = ROOT / "docs" / "postgresql.md"
SUPERUSER = "a superuser"
PASSWORD = "of-the-shop"
ROLES = ("outbox_owner", "outbox_daemon", "outbox_operator", "outbox_reader", "shop")

CONFIGURATION = """\
[receivers]
modules = ["receivers"]

[[outbox]]
name = "main"
table = "outbox"

[scopes.ACCOUNT]
value = 1

[categories.ACCOUNT_UPDATE]
value = 1
scope = "ACCOUNT"

[[model]]
table = "account"
outbox = "main"
category = "ACCOUNT_UPDATE"
shard_identifier = "id"

[drain]
poll_interval_s = 0.1
"""
REFUSED, DISCARDED = 98, 99  # shards
RECEIVERS = f"""\
from outboxd import Discard, receiver

@receiver("ACCOUNT_UPDATE")
async def accept(message):
    if message.shard_identifier == {REFUSED}:
        raise ValueError("not today")
    if message.shard_identifier == {DISCARDED}:
        raise Discard("never")
"""


@dataclass(frozen=True)
class Block:
    """A fenced block of the document; `section` is the heading above it."""

    section: str
    language: str
    text: str

    @property
    def role(self) -> str:
        """Who runs it, by its first comment."""
        found = re.match(r"-- As (a superuser|\w+)", self.text)
        assert found is not None, f"by whom?\n{self.text}"
        return found[1]


def blocks(section: str | None = None, language: str | None = None) -> list[Block]:
    """The document's blocks, in order; those of one section or language."""
    found = []
    for part in re.split(r"^(?=##+ )", DOCUMENT.read_text("utf-8"), flags=re.MULTILINE):
        heading = part.partition("\n")[0].strip("# ")
        for kind, text in re.findall(r"^```(\w+)\n(.*?)^```", part, re.MULTILINE | re.DOTALL):
            found.append(Block(heading, kind, text))
    return [b for b in found if section in (None, b.section) and language in (None, b.language)]


@dataclass
class ShopDatabase:
    """The database `shop`; `admin` is a superuser's connection to it."""

    folder: Path
    server: ScramServer
    admin: asyncpg.Connection

    @property
    def config(self) -> Path:
        return self.folder / "outboxd.toml"

    def dsn(self, role: str) -> str:
        return self.server.dsn_of(role, PASSWORD, "shop")

    def environment(self, role: str) -> dict[str, str]:
        return {"OUTBOX_DSN": self.dsn(role), "OUTBOX_HTTP_LISTEN": ""}

    @contextlib.asynccontextmanager
    async def connected(self, role: str) -> AsyncIterator[asyncpg.Connection]:
        connection = self.admin if role == SUPERUSER else await asyncpg.connect(self.dsn(role))
        try:
            yield connection
        finally:
            if role != SUPERUSER:
                await connection.close()

    async def execute(self, *found: Block) -> None:
        """Run SQL blocks, each as the role that it names."""
        for block in found:
            async with self.connected(block.role) as connection:
                await connection.execute(block.text)

    async def fetch(self, block: Block) -> list[asyncpg.Record]:
        """Run a block of queries, and return the rows of the last one."""
        async with self.connected(block.role) as connection:
            rows: list[asyncpg.Record] = []
            for statement in filter(str.strip, block.text.split(";")):
                rows = await connection.fetch(statement)
        return rows

    async def create_roles(self) -> None:
        """Do the document's first step, give the roles passwords, and let the application have a table."""
        await self.execute(blocks("Roles and grants", "sql")[0])
        for role in ROLES:
            await self.admin.execute(f"ALTER ROLE {role} PASSWORD '{PASSWORD}'")
        await self.admin.execute(
            "CREATE TABLE account (id bigint PRIMARY KEY, plan text NOT NULL); ALTER TABLE account OWNER TO shop"
        )

    async def grant(self) -> None:
        await self.run("migrate", role="outbox_owner")
        await self.execute(*blocks("Roles and grants", "sql")[1:])

    async def run(self, *arguments: str, role: str, code: int = 0) -> processes.Outboxd:
        done = await processes.run(*arguments, config=self.config, env=self.environment(role))
        assert done.returncode == code, f"{arguments} as {role}: {done.returncode}\n{done.stdout}{done.stderr}"
        return done

    @contextlib.asynccontextmanager
    async def daemon(self, role: str = "outbox_daemon", **environment: str) -> AsyncIterator[processes.Outboxd]:
        options = {**self.environment(role), **environment}
        async with processes.outboxd(config=self.config, env=options) as process:
            yield process

    def shell(self, text: str, **environment: str) -> str:
        """Run a block of shell commands, where `outboxd` is ours; returns what it printed."""
        program = self.folder / "outboxd"
        program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m outboxd --config {self.config} "$@"\n')
        program.chmod(0o755)
        variables = {"PATH": f"{self.folder}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT), **environment}
        done = subprocess.run(
            ["sh", "-uc", text], env=variables, capture_output=True, text=True, timeout=30, check=False
        )
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    async def count(self) -> int:
        number: int = await self.admin.fetchval("SELECT count(*) FROM outbox")
        return number


@contextlib.asynccontextmanager
async def shop_database(folder: Path, server: ScramServer) -> AsyncIterator[ShopDatabase]:
    """Make the database and its roles, without any grant but those to create; drop all at the end."""
    async with server.connection() as admin:
        await admin.execute("CREATE DATABASE shop")
    connection = await asyncpg.connect(re.sub(r"/postgres\b", "/shop", server.dsn))
    made = ShopDatabase(folder, server, connection)
    made.config.write_text(CONFIGURATION)
    (folder / "receivers.py").write_text(RECEIVERS)
    try:
        await made.create_roles()
        yield made
    finally:
        await connection.close()
        async with server.connection() as admin:
            await admin.execute("DROP DATABASE shop WITH (FORCE)")
            for role in ROLES:
                await admin.execute(f"DROP ROLE IF EXISTS {role}")


def granted(statements: str) -> Iterator[tuple[str, str, str]]:
    """Privilege, object and role of every GRANT in a text."""
    for privileges, what, roles in re.findall(r"^\s*(?:-> )?GRANT (.+?) ON (.+?) TO (.+?);", statements, re.MULTILINE):
        for privilege in privileges.split(", "):
            for role in roles.split(", "):
                yield privilege, what, role
