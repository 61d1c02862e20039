"""
What is tidied up beside the drain: dead letters that have been kept long enough are deleted.

In bounded batches, on a connection that is opened for the moment. A failure is a line in the log and stops nothing.
"""

from __future__ import annotations

import asyncio
import datetime as dt
from typing import TYPE_CHECKING, NoReturn

import structlog

from outboxd import dead_letters, errors, session

if TYPE_CHECKING:
    from collections.abc import Callable

    from outboxd.config import Config

log = structlog.get_logger()

INTERVAL_S = 3_600.0
BATCHES_MAX = 100
REST_S = 60.0


class Housekeeping:
    """
    Deletes what is old.

    Args:
        config: The schema, and how long dead letters are kept: `keep_days`, which may be changed while it runs.
        dsn: Tells where to connect, asked each time.
    """

    def __init__(self, config: Config, dsn: Callable[[], str]) -> None:
        self.keep_days = config.dead_letter.keep_days
        self._config = config
        self._dsn = dsn

    async def run(self) -> NoReturn:
        """Tidy now and then. Never returns: cancel it."""
        while True:
            is_done = await self.tidy(BATCHES_MAX)
            await asyncio.sleep(INTERVAL_S if is_done else REST_S)

    async def tidy(self, batches_max: int) -> bool:
        """
        Delete expired dead letters, at most so many batches of `dead_letters.BATCH_ROWS`.

        Returns:
            Whether there is nothing to do until later: all are deleted, or it failed.
        """
        keep_days = self.keep_days
        if not keep_days:
            return True
        purged, is_done = 0, False
        try:
            async with session.visit(self._dsn(), name="housekeeping") as connection:
                for _ in range(batches_max):
                    batch = await dead_letters.purge_expired(connection, self._config, dt.timedelta(days=keep_days))
                    purged += batch
                    is_done = batch < dead_letters.BATCH_ROWS
                    if is_done:
                        break
        except errors.OutboxdError as exc:
            is_done = True
            log.warning("dead_letters.not_purged", error=str(exc), hint=exc.hint or None)
        if purged:
            log.info("dead_letters.purged", rows=purged, keep_days=keep_days)
        return is_done
