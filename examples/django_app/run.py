"""Start a PostgreSQL of its own, migrate, start the daemon and the application, send it some requests, and end."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import threading
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen
from wsgiref.simple_server import WSGIRequestHandler, make_server

import asyncpg

from outboxd.embedded import embedded_postgres

HERE = Path(__file__).parent


class Quiet(WSGIRequestHandler):
    def log_message(self, *_: Any) -> None:
        """Leave the lines to those who deliver."""


async def manage(*arguments: str, role: str = "") -> asyncio.subprocess.Process:
    """Start a command of manage.py."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "manage.py", *arguments, env={**os.environ, "ROLE": role}, cwd=HERE
    )


def serve() -> Any:
    """Serve the application in a thread, on a port that is free."""
    sys.path.insert(0, str(HERE))
    from django.core.wsgi import get_wsgi_application

    server = make_server("127.0.0.1", 0, get_wsgi_application(), handler_class=Quiet)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    return server


def request(url: str, method: str, body: dict[str, Any]) -> None:
    """Do a request, and print the answer."""
    asked = Request(url, json.dumps(body).encode(), method=method)  # noqa: S310  our own server
    with urlopen(asked) as answer:  # noqa: S310
        print(f"{method} {url.rpartition('/')[2]}:", answer.status, json.load(answer), flush=True)


async def use(url: str, dsn: str) -> None:
    """Do what a client does, and wait until the daemon is through."""
    await asyncio.to_thread(request, f"{url}/accounts/1/plan", "PUT", {"plan": "pro"})
    for amount in (10, 20):
        await asyncio.to_thread(request, f"{url}/accounts/1/invoices", "POST", {"amount": amount})
    connection = await asyncpg.connect(dsn)
    while await connection.fetchval("SELECT count(*) FROM outbox"):  # noqa: ASYNC110  what it waits for is in there
        await asyncio.sleep(0.1)
    await connection.close()
    print("the outbox is empty", flush=True)


async def main() -> None:
    """Run the example."""
    async with embedded_postgres() as dsn:
        os.environ |= {"OUTBOX_DSN": dsn, "OUTBOX_HTTP_LISTEN": "", "DJANGO_SETTINGS_MODULE": "settings"}
        os.environ["ROLE"] = "the application"
        await (await manage("migrate", "--run-syncdb", "--verbosity", "0")).wait()
        await (await manage("outboxd", "migrate")).wait()
        daemon = await manage("outboxd", role="the daemon")
        server = await asyncio.to_thread(serve)
        try:
            await use(f"http://127.0.0.1:{server.server_port}", dsn)
        finally:
            await asyncio.to_thread(server.shutdown)
            server.server_close()
            daemon.terminate()
            await daemon.wait()


if __name__ == "__main__":
    asyncio.run(main())
