"""
Health and metrics over HTTP: three questions that change nothing, on loopback unless told otherwise.

    /healthz   200: the event loop turns
    /readyz    200: the drain works; 503 and why it does not
    /metrics   for Prometheus
"""

from __future__ import annotations

import asyncio
import logging
import os
import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import structlog
from aiohttp import web
from prometheus_client.exposition import choose_encoder

from outboxd import contract, errors

if TYPE_CHECKING:
    from prometheus_client import CollectorRegistry

    from outboxd.config import HttpConfig

log = structlog.get_logger()

CLOSE_S_MAX = 1.0
SWEEP_EVERY_S = 0.5
CONNECTIONS_MAX = 64
CONNECTION_S_MAX = 60.0


class Server:
    """
    Listens as `[http]` says.

    Args:
        config: Where; nowhere when `listen` is empty.
        not_ready: Tells why the drain does not work; empty when it does.
        registry: The metrics.
    """

    def __init__(self, config: HttpConfig, not_ready: Callable[[], list[str]], registry: CollectorRegistry) -> None:
        self._config = config
        self._not_ready = not_ready
        self._registry = registry
        self._runner: web.AppRunner | None = None
        self._sweeping: asyncio.TimerHandle | None = None
        self._seen: dict[object, float] = {}

    async def open(self) -> None:
        """
        Begin to listen.

        Raises:
            ConfigError: The address cannot be listened on, and that is not `optional`.
        """
        if not self._config.listen:
            return
        app = web.Application()
        routes = (("/healthz", self._healthz), ("/readyz", self._readyz), ("/metrics", self._metrics))
        app.add_routes([web.get(path, handler) for path, handler in routes])
        # A request that is none is its sender's affair, and answered with 400: not an error of ours for the log.
        logging.getLogger("aiohttp.server").setLevel(logging.CRITICAL)
        runner = web.AppRunner(app, handle_signals=False, access_log=None, shutdown_timeout=CLOSE_S_MAX)
        await runner.setup()
        host, port = contract.split_listen(self._config.listen)
        try:
            await web.TCPSite(runner, host or None, port).start()
        except (OSError, UnicodeError) as exc:  # the latter of a host that is no name, such as a..b
            await runner.cleanup()
            number = exc.errno if isinstance(exc, OSError) else None
            reason = os.strerror(number).lower() if number and number > 0 else str(exc)
            problem = f"http.listen: cannot listen on {self._config.listen}: {reason}"
            hint = "Choose another address or port (OUTBOX_HTTP_LISTEN), or an empty one for none."
            if not self._config.optional:
                raise errors.ConfigError([problem], hint=f"{hint} [http] optional = true drains without.") from exc
            log.warning("http.unavailable", error=problem, hint=hint)
            return
        self._runner = runner
        self._sweep()
        log.info("http.listening", addresses=[_written(address) for address in runner.addresses])

    async def close(self) -> None:
        """Stop listening."""
        if self._sweeping is not None:
            self._sweeping.cancel()
        if self._runner is not None:
            await self._runner.cleanup()
            self._runner = None

    def _sweep(self) -> None:
        """
        End connections that are old, or too many.

        Nobody needs one for long; descriptors that are held by half-sent requests are what the drain would lack.
        """
        self._sweeping = asyncio.get_running_loop().call_later(SWEEP_EVERY_S, self._sweep)
        server = self._runner.server if self._runner is not None else None
        connections = list(server.connections) if server is not None else []
        now = time.monotonic()
        self._seen = {each: self._seen.get(each, now) for each in connections}
        for number, each in enumerate(reversed(connections)):  # the newest first
            if (number >= CONNECTIONS_MAX or now - self._seen[each] > CONNECTION_S_MAX) and each.transport is not None:
                each.transport.abort()

    async def _healthz(self, _request: web.Request) -> web.Response:
        return web.Response(text="ok\n")

    async def _readyz(self, _request: web.Request) -> web.Response:
        reasons = self._not_ready()
        return web.json_response({"ready": not reasons, "reasons": reasons}, status=503 if reasons else 200)

    async def _metrics(self, request: web.Request) -> web.Response:
        encode, content_type = choose_encoder(request.headers.get("Accept", ""))
        try:
            page = encode(self._registry)
        except Exception:  # a metric of a receiver's own may be broken
            log.exception("metrics.crashed")
            return web.Response(text="a metric cannot be collected: see the log\n", status=500)
        return web.Response(body=page, headers={"Content-Type": content_type})


def _written(address: object) -> str:
    host, port = address[:2] if isinstance(address, tuple) else (address, "")
    return f"[{host}]:{port}" if ":" in str(host) else f"{host}:{port}"
