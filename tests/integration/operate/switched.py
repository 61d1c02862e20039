"""The commands that switch things off and on, in tests: a configuration to run them with, and what they answer."""

from __future__ import annotations

import asyncio
import json
import os
from typing import TYPE_CHECKING, Any

from tests.drains import CATEGORIES, SCOPES
from tests.integration.test_migrate import wheel_psql
from tests.processes import Outboxd, run

if TYPE_CHECKING:
    from pathlib import Path

NOBODY = {"OUTBOX_DSN": "postgresql://nobody@127.0.0.1:1/x"}

OUTBOXES = """
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
TEXT_OUTBOX = """
[[outbox]]
name = "text"
table = "text_outbox"
key_type = "text"
"""
MODEL = """
[[model]]
table = "organizationmember"
outbox = "region"
category = "MEMBER"
shard_identifier = "organization_id"
"""


class Here:
    """A folder with a configuration: the scopes and categories of `tests.drains`, one outbox of each kind."""

    def __init__(self, folder: Path, dsn: str) -> None:
        self.file = folder / "outboxd.toml"
        self._dsn = dsn

    def configure(self, outboxes: str = OUTBOXES, *, model: str = MODEL, dsn: str = "", more: str = "") -> None:
        lines = [f"dsn = {json.dumps(dsn or self._dsn)}", more]
        for name, scope in SCOPES.items():
            lines += [f"[scopes.{name}]", f"value = {scope.value}"]
        for name, category in CATEGORIES.items():
            lines += [f"[categories.{name}]", f"value = {category.value}", f'scope = "{category.scope}"']
            lines += [f'on_error = "{category.on_error}"']
        self.file.write_text("\n".join([*lines, outboxes, model]))

    async def run(self, *arguments: str, code: int = 0, **options: Any) -> Outboxd:
        done = await run(*arguments, config=self.file, **options)
        assert "Traceback" not in done.stderr
        assert done.returncode == code, done.stdout + done.stderr
        return done

    async def refused(self, *arguments: str, code: int = 2) -> str:
        """Run what must fail, and return what it says."""
        done = await self.run(*arguments, code=code)
        assert done.stdout == ""
        return done.stderr

    async def json(self, *arguments: str, code: int = 0) -> Any:
        return json.loads((await self.run(*arguments, "--json", code=code)).stdout)

    async def in_psql(self, *arguments: str) -> list[dict[str, Any]]:
        """Print the query without a connection, run it in psql, and return its rows as JSON has them."""
        query = (await self.run(*arguments, "--sql", env=NOBODY)).stdout
        assert query.startswith("-- ")
        assert "LIMIT" in query
        query = query.rstrip().removesuffix(";")
        return await psql(self._dsn, f"SELECT row_to_json(answer) FROM (\n{query}\n) AS answer;\n")


async def psql(dsn: str, script: str) -> list[dict[str, Any]]:
    process = await asyncio.create_subprocess_exec(
        *(wheel_psql(), "--no-psqlrc", "-v", "ON_ERROR_STOP=1", "-qAt", "-d", dsn),
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
        env={**os.environ, "PGTZ": "UTC"},
    )
    output, error = await process.communicate(script.encode())
    assert process.returncode == 0, error.decode()
    return [json.loads(line) for line in output.decode().splitlines()]
