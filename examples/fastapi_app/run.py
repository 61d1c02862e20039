"""Start a PostgreSQL of its own, migrate, start the daemon and the application, send it some requests, and end."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlencode, urlsplit

import aiohttp
import asyncpg
import uvicorn

from outboxd.embedded import embedded_postgres

HERE = Path(__file__).parent


async def outboxd(*arguments: str, role: str) -> asyncio.subprocess.Process:
    """Start outboxd with the configuration of this folder."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outboxd", *arguments, env={**os.environ, "ROLE": role}, cwd=HERE
    )


async def use(url: str, dsn: str) -> None:
    """Do what a client does, and wait until the daemon is through."""
    async with aiohttp.ClientSession(url) as client:
        async with client.put("/accounts/1/plan", json={"plan": "pro"}) as answer:
            print("PUT plan:", answer.status, await answer.json(), flush=True)
        for amount in (10, 20):
            async with client.post("/accounts/1/invoices", json={"amount": amount}) as answer:
                print("POST invoice:", answer.status, await answer.json(), flush=True)
    connection = await asyncpg.connect(dsn)
    while await connection.fetchval("SELECT count(*) FROM outbox"):  # noqa: ASYNC110  what it waits for is in there
        await asyncio.sleep(0.1)
    await connection.close()
    print("the outbox is empty", flush=True)


def sqlalchemy_url(dsn: str) -> str:
    """Write the embedded server's DSN as SQLAlchemy has it."""
    parts = urlsplit(dsn)
    query = {key: values[0] for key, values in parse_qs(parts.query).items() if key != "sslmode"}
    return f"postgresql+asyncpg://{parts.username}@{parts.path}?{urlencode(query)}"


async def main() -> None:
    """Run the example."""
    async with embedded_postgres() as dsn:
        os.environ |= {"OUTBOX_DSN": dsn, "OUTBOX_CONFIG": str(HERE / "outboxd.toml"), "OUTBOX_HTTP_LISTEN": ""}
        os.environ |= {"APP_DATABASE_URL": sqlalchemy_url(dsn), "ROLE": "the application"}
        await (await outboxd("migrate", role="")).wait()
        daemon = await outboxd(role="the daemon")
        sys.path.insert(0, str(HERE))
        server = uvicorn.Server(uvicorn.Config("app:app", port=0, log_level="warning"))
        serving = asyncio.create_task(server.serve())
        while not server.started:  # noqa: ASYNC110  it has no event to wait for
            await asyncio.sleep(0.05)
        try:
            port = server.servers[0].sockets[0].getsockname()[1]
            await use(f"http://127.0.0.1:{port}", dsn)
        finally:
            server.should_exit = True
            await serving
            daemon.terminate()
            await daemon.wait()


if __name__ == "__main__":
    asyncio.run(main())
