"""
For the tests of applications: deliver everything that is due, at the end of a block.

    async with outbox_runner():
        await create_order(...)          # writes messages
    # here every receiver has run
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from outboxd import errors, load, registry
from outboxd.model import Unsent
from outboxd.pipeline import Pipeline
from outboxd.producer.context import is_inside

if TYPE_CHECKING:
    from outboxd.model import Failed, Message

ROUNDS_MAX = 10


@contextlib.asynccontextmanager
async def outbox_runner(
    config: Path | str | None = None,
    *,
    dsn: str | None = None,
    receivers: list[Callable[..., Any]] | None = None,
) -> AsyncIterator[None]:
    """
    Drain everything that is due when the block ends without an error: the daemon's own loop, in this process.

    Messages must be committed; those scheduled ahead wait.

    Args:
        config:
            The configuration file; None looks where the daemon looks (OUTBOX_CONFIG, ./outboxd.toml …).

        dsn:
            The database, if not the configured one.

        receivers:
            Functions marked with `@receiver` to use besides those of the configured modules.

    Raises:
        OutboxFlushError: A receiver raised; bears the message, which stays in the outbox. The first one, if many.
        OutboxContextError: The block ends inside an `outbox_context`.
        OutboxRecursionLimitError: After ten rounds receivers were still writing messages.
        ConfigError, SchemaError, StoreUnavailable: As for the daemon.
    """
    loaded = load.load(Path(config) if config is not None else None, overrides={"dsn": dsn, "session_dsn": dsn})
    loaded.config.require_outboxes()
    yield
    if is_inside():
        raise errors.OutboxContextError("outbox_runner inside an outbox_context: what it wrote is not committed yet")
    functions = registry.load_receivers(loaded.config.receivers.modules, loaded.folder)
    built = registry.build(loaded.config, functions + [f for f in receivers or [] if f not in functions])
    pipeline = Pipeline(loaded.config, built, lambda: load.session_dsn(loaded), bounded=True, rounds_max=ROUNDS_MAX)
    failures: list[tuple[Failed, Message | Unsent]] = []
    pipeline.live.on_failed = lambda failed, message: failures.append((failed, message))
    try:
        await pipeline.open()
        await pipeline.run()
    finally:
        await pipeline.close()
    _raise_what_went_wrong(pipeline, failures)


def _raise_what_went_wrong(pipeline: Pipeline, failures: list[tuple[Failed, Message | Unsent]]) -> None:
    for branch in pipeline.branches:
        if branch.error is not None:
            raise branch.error
    if failures:
        failed, message = failures[0]
        raise errors.OutboxFlushError(failed.error, None if isinstance(message, Unsent) else message)
    bounded = [branch.bounded for branch in pipeline.branches if branch.bounded is not None]
    if pipeline.remaining_due and any(b.exhausted or b.rounds >= ROUNDS_MAX for b in bounded):
        raise errors.OutboxRecursionLimitError(f"the outbox was not empty after {ROUNDS_MAX} rounds")
