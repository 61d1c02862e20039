"""Producing in tests: what an application has, with receivers of the test's own."""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING

import msgspec

from outboxd.load import Loaded
from outboxd.producer import Producer
from tests.drains import build, configure

if TYPE_CHECKING:
    from collections.abc import AsyncIterator

    from outboxd.config import Config
    from tests.drains import Receivers

NOBODY: Receivers = {}
"""A process without receivers: flushing wakes the daemon."""


@contextlib.asynccontextmanager
async def producing(
    dsn: str,
    receivers: Receivers = NOBODY,
    config: Config | None = None,
    *,
    flush_timeout_s: float = 10.0,
    flush_connections: int = 5,
) -> AsyncIterator[Producer]:
    """Make a producer of this configuration, and close its connections at the end."""
    config = config or configure()
    settings = msgspec.structs.replace(
        config.producer, flush_timeout_s=flush_timeout_s, flush_connections=flush_connections
    )
    config = msgspec.structs.replace(config, dsn=dsn, producer=settings)
    made = Producer(Loaded(config), registry=build(config, receivers))
    try:
        yield made
    finally:
        await made.close()
