"""docs/producers.md: what stands there is run, block by block."""

from __future__ import annotations

import ast
import inspect
import logging
import re
import textwrap
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from outboxd.config import CategoryConfig
from outboxd.migrate import migrate
from outboxd.producer import use
from tests.drains import Recorder, configure, draining, remaining
from tests.integration.operate.roles import role
from tests.produce import producing

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    import asyncpg

PAGE = (Path(__file__).parents[3] / "docs" / "producers.md").read_text("utf-8")
BLOCK = re.compile(r"^```(python|sql)\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = BLOCK.findall(PAGE)
CONFIG = configure(categories={"MEMBER_UPDATE": CategoryConfig(value=3, scope="ORGANIZATION_SCOPE")})


@pytest.fixture
async def shop(connection: asyncpg.Connection) -> asyncpg.Connection:
    await migrate(connection, CONFIG)
    await connection.execute("CREATE TABLE member (id bigint, slug text); INSERT INTO member VALUES (71, 'x')")
    return connection


@pytest.fixture
async def names(database: str, shop: asyncpg.Connection) -> AsyncIterator[dict[str, Any]]:
    """What the blocks speak of."""
    async with producing(database, config=CONFIG) as producer:
        use(producer)
        yield {
            "connection": shop,
            "member": 71,
            "organization": 7,
            "slug": "ada",
            "Member": object,
            "log": logging.getLogger(),
        }
        use(None)


def blocks(language: str) -> list[str]:
    return [text for kind, text in BLOCKS if kind == language]


async def execute(text: str, names: dict[str, Any]) -> None:
    body = f"async def block():\n{textwrap.indent(text, '    ')}    globals().update(locals())\n"
    exec(compile(ast.parse(body), "docs/producers.md", "exec", dont_inherit=True), names)
    await names["block"]()


async def test_python(database: str, shop: asyncpg.Connection, names: dict[str, Any]) -> None:
    async with draining(database, Recorder(), CONFIG):
        for text in ["from outboxd import outbox_context\n", *blocks("python")]:
            if "/srv/" not in text and "django" not in text:  # test_docs of tests/integration/django runs those
                await execute(text, names)
        await names["rename"](shop, 71, 7, "grace")

    assert await shop.fetchval("SELECT slug FROM member") == "grace"
    assert len(names["ids"]) == 1000
    assert inspect.iscoroutinefunction(names["rename"])


async def test_sql(database: str, shop: asyncpg.Connection) -> None:
    grants = [text for text in blocks("sql") if "GRANT" in text]
    others = [text for text in blocks("sql") if "GRANT" not in text]
    async with role(shop, database) as (name, _):
        for text in grants:
            await shop.execute(text.replace(" shop;", f" {name};"))
        await shop.execute(f"GRANT SELECT, UPDATE ON member TO {name}; SET ROLE {name}")
        for text in others:
            await shop.execute(text)
        await shop.execute("RESET ROLE")

    assert len(grants) == 1
    assert len(await remaining(shop)) == len(others) == 2
