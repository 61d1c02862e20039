"""Start a PostgreSQL of its own, migrate, start the daemon and the application in Node, and wait for its end."""

from __future__ import annotations

import asyncio
import os
import socket
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import asyncpg

from outboxd.embedded import embedded_postgres

HERE = Path(__file__).parent
SCHEMA = "CREATE TABLE orders (id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY, customer_id bigint, total int)"


def free_port() -> int:
    """Find a port for the application."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port: int = listener.getsockname()[1]
    return port


async def start(*command: str, **environment: str) -> asyncio.subprocess.Process:
    """Start a program in this folder."""
    return await asyncio.create_subprocess_exec(*command, cwd=HERE, env={**os.environ, **environment})


async def main() -> int:
    """Run the example; returns the application's exit code."""
    if not (HERE / "node_modules").exists() and await (await start("npm", "install", "--no-audit", "--no-fund")).wait():
        return 1
    async with embedded_postgres() as dsn:
        parts = urlsplit(dsn)
        place = {key: values[0] for key, values in parse_qs(parts.query).items()}
        port = str(free_port())
        outboxd = (sys.executable, "-m", "outboxd", "--config", "outboxd.toml")
        settings = {"OUTBOX_DSN": dsn, "OUTBOX_HTTP_LISTEN": "", "EVENTS_URL": f"http://127.0.0.1:{port}/events"}
        if await (await start(*outboxd, "migrate", **settings)).wait():
            return 1
        connection = await asyncpg.connect(dsn)
        await connection.execute(SCHEMA)
        await connection.close()
        daemon = await start(*outboxd, **settings)
        application = await start(
            "node",
            "app.mjs",
            PORT=port,
            PGHOST=place["host"],
            PGPORT=place["port"],
            PGUSER=parts.username or "",
            PGDATABASE=parts.path[1:],
        )
        try:
            return await application.wait()
        finally:
            daemon.terminate()
            await daemon.wait()


if __name__ == "__main__":
    sys.exit(asyncio.run(main()))
