"""
A web application on asyncpg that writes its messages with `outbox_context`.

    PUT  /accounts/{id}/plan       changes a plan; answers when others have heard of it (flush)
    POST /accounts/{id}/invoices   writes an invoice; the daemon delivers it

`python app.py` starts a PostgreSQL of its own, migrates, starts the daemon and the application, sends it some requests,
and ends. With `--serve` it stays.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import aiohttp
import asyncpg
from aiohttp import web

from outboxd import OutboxFlushError, outbox_context
from outboxd.embedded import embedded_postgres

HERE = Path(__file__).parent
POOL = web.AppKey("pool", asyncpg.Pool)
SCHEMA = """
CREATE TABLE account (id bigint PRIMARY KEY, plan text NOT NULL);
CREATE TABLE invoice (
    id bigint GENERATED ALWAYS AS IDENTITY PRIMARY KEY,
    account_id bigint NOT NULL,
    amount int NOT NULL
);
"""


async def put_plan(request: web.Request) -> web.Response:
    """Change a plan. The change is committed in any case; 202 means that the daemon will tell the others."""
    account, plan = int(request.match_info["id"]), (await request.json())["plan"]
    async with request.app[POOL].acquire() as connection:
        try:
            async with outbox_context(connection, flush=True) as outbox:
                await connection.execute(
                    "INSERT INTO account VALUES ($1, $2) ON CONFLICT (id) DO UPDATE SET plan = $2", account, plan
                )
                await outbox.save(
                    "PLAN_UPDATE", shard_identifier=account, object_identifier=account, payload={"plan": plan}
                )
        except OutboxFlushError as exc:
            return web.json_response({"delivered": False, "why": str(exc)}, status=202)
    return web.json_response({"delivered": True})


async def post_invoice(request: web.Request) -> web.Response:
    """Write an invoice."""
    account, amount = int(request.match_info["id"]), int((await request.json())["amount"])
    async with request.app[POOL].acquire() as connection, outbox_context(connection) as outbox:
        invoice = await connection.fetchval(
            "INSERT INTO invoice (account_id, amount) VALUES ($1, $2) RETURNING id", account, amount
        )
        await outbox.save("INVOICE", shard_identifier=account, object_identifier=invoice, payload={"amount": amount})
    return web.json_response({"id": invoice}, status=201)


async def started(pool: asyncpg.Pool) -> tuple[web.AppRunner, str]:
    """Start the application on a port that is free; returns where it is."""
    app = web.Application()
    app[POOL] = pool
    app.add_routes([web.put("/accounts/{id}/plan", put_plan), web.post("/accounts/{id}/invoices", post_invoice)])
    runner = web.AppRunner(app)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    return runner, f"http://127.0.0.1:{runner.addresses[0][1]}"


async def use(url: str, pool: asyncpg.Pool) -> None:
    """Do what a client does, and wait until the daemon is through."""
    async with aiohttp.ClientSession(url) as client:
        async with client.put("/accounts/1/plan", json={"plan": "pro"}) as answer:
            print("PUT plan:", answer.status, await answer.json(), flush=True)
        for amount in (10, 20):
            async with client.post("/accounts/1/invoices", json={"amount": amount}) as answer:
                print("POST invoice:", answer.status, await answer.json(), flush=True)
    while await pool.fetchval("SELECT count(*) FROM outbox"):  # noqa: ASYNC110  what it waits for is in the database
        await asyncio.sleep(0.1)
    print("the outbox is empty", flush=True)


async def outboxd(*arguments: str, environment: dict[str, str]) -> asyncio.subprocess.Process:
    """Start outboxd with the configuration of this folder."""
    return await asyncio.create_subprocess_exec(
        sys.executable, "-m", "outboxd", *arguments, env={**os.environ, **environment}, cwd=HERE
    )


async def main(*, serve: bool) -> None:
    """Start everything, and end it."""
    async with embedded_postgres() as dsn:
        os.environ |= {"OUTBOX_DSN": dsn, "OUTBOX_CONFIG": str(HERE / "outboxd.toml"), "OUTBOX_HTTP_LISTEN": ""}
        await (await outboxd("migrate", environment={})).wait()
        daemon = await outboxd(environment={"ROLE": "the daemon", "OUTBOX_LOG_FORMAT": "console"})
        os.environ["ROLE"] = "the application"
        async with asyncpg.create_pool(dsn, min_size=1, max_size=5) as pool:
            await pool.execute(SCHEMA)
            runner, url = await started(pool)
            print(f"listening on {url}", flush=True)
            try:
                await use(url, pool)
                if serve:
                    await asyncio.Event().wait()
            finally:
                await runner.cleanup()
                daemon.terminate()
                await daemon.wait()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--serve", action="store_true", help="stay, and answer requests")
    try:
        asyncio.run(main(serve=parser.parse_args().serve))
    except KeyboardInterrupt:
        sys.exit(130)
