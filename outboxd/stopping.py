"""
How a run ends before its time: softly at the first signal, hard at the second or when the grace period is over.

    running -> stopping       nothing new is claimed, deliveries under way finish
    stopping -> stopping hard [second signal, end of grace_period_s]  deliveries are cancelled
    stopping hard -> ended    or, when a receiver ignores its cancellation, abandoned with it
"""

from __future__ import annotations

import asyncio
import itertools
import os
import signal
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import anyio

from outboxd import display, log

if TYPE_CHECKING:
    from collections.abc import Callable, Coroutine

    from outboxd.pipeline import Pipeline

T = TypeVar("T")

_log = log.get()

EXIT_HARD_STOP = 1
CANCELLATION_S_MAX = 3.0


class Stopper:
    """
    Turns signals and the end of a time limit into the two stops of a pipeline.

    Args:
        pipeline: What is stopped.
        expected: The stop is part of the plan (a time limit), and no news.
    """

    def __init__(self, pipeline: Pipeline, *, expected: bool = False) -> None:
        self._pipeline = pipeline
        self._expected = expected
        self._hard = asyncio.Event()
        self.stopping = asyncio.Event()

    def listen(self) -> None:
        """Take over SIGTERM, SIGINT and SIGHUP, for good."""
        listen(self.stop, insist=self._hard.set)

    def stop(self) -> None:
        """Begin a soft stop."""
        self.stopping.set()
        self._pipeline.stop()

    async def unless_stopping(self, work: Coroutine[Any, Any, T]) -> T | None:
        """Do what has no part in the stops, and cancel it when one begins, or has begun; then None."""
        if self.stopping.is_set():
            work.close()
            return None

        async def give_up() -> None:
            await self.stopping.wait()
            scope.cancel()

        with anyio.CancelScope() as scope:
            waiting = asyncio.create_task(give_up())
            try:
                return await work
            finally:
                waiting.cancel()
        return None

    async def run(self) -> NoReturn:
        """Wait for a stop and see it through. Never returns: cancel it when the pipeline has ended."""
        await self.stopping.wait()
        grace_period_s = self._pipeline.live.drain.grace_period_s
        if not self._expected:
            _log.info("daemon.stopping", grace_period_s=grace_period_s)
        reason = "second signal"
        try:
            async with asyncio.timeout(grace_period_s):
                await self._hard.wait()
        except TimeoutError:
            reason = "end of the grace period"
        _log.warning("daemon.stopping_hard", reason=reason)
        self._pipeline.stop_hard()
        with anyio.move_on_after(CANCELLATION_S_MAX):
            await self._pipeline.drained.wait()
            await asyncio.Event().wait()  # all receivers have obeyed: the pipeline settles, and ends by itself
        if not self._pipeline.drained.is_set():
            await self._abandon()
        await asyncio.Event().wait()
        raise AssertionError

    async def _abandon(self) -> NoReturn:
        """End the process beside a receiver that will not end; what was delivered is settled all the same."""
        await self._pipeline.settle()
        _log.error("daemon.abandoned", hint="a receiver ignores its cancellation: the process ends without it")
        await self._pipeline.close()
        exit_now(EXIT_HARD_STOP)


def listen(stop: Callable[[], None], *, insist: Callable[[], None]) -> None:
    """
    Take over the signals that end a run.

    Args:
        stop: At every SIGTERM, SIGINT and SIGHUP; the last not where `nohup` ignores it.
        insist: At the second SIGTERM or SIGINT. SIGHUP does not count: a terminal that closes may send several, and
            service managers send it beside SIGTERM, which may arrive in either order.
    """
    asked = itertools.count()

    def on_signal() -> None:
        if next(asked):
            insist()
        stop()

    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
        loop.add_signal_handler(signal.SIGHUP, stop)


def exit_now(code: int) -> NoReturn:
    """End the process without waiting for anybody."""
    display.flush()
    os._exit(code)
