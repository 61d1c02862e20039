"""
Handing a message to its receivers: one call, one outcome.

Whatever a receiver does (raise, even a BaseException; hang; return something; cancel itself) ends in an outcome.
Only a hard stop, which cancels this very task from outside, passes through.
"""

from __future__ import annotations

import asyncio
import contextvars
import inspect
import math
import types
from collections.abc import Awaitable, Coroutine, Generator, Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import anyio
import anyio.to_thread

from outboxd import errors
from outboxd.live import Work
from outboxd.model import Buried, Failed, Message, Outcome

if TYPE_CHECKING:
    from outboxd.live import Live
    from outboxd.registry import Category, Receiver


_RETURNED = object()

is_delivering: contextvars.ContextVar[bool] = contextvars.ContextVar("outboxd_is_delivering", default=False)
"""Whether this task or thread is a drain's own: what receivers call sees it."""


class Delivery:
    """
    Calls receivers.

    Args:
        live: Each receiver may take `receiver_timeout_s`; plain functions share `concurrency` worker threads.
    """

    def __init__(self, live: Live) -> None:
        self._live = live
        self.suspensions = 0
        """How often a receiver has let other tasks run."""
        self._limiter = anyio.CapacityLimiter(live.drain.concurrency)

    def send_signal(self, category: Category, message: Message) -> Coroutine[Any, Any, Outcome] | None:
        """
        Call every receiver of the category, in order of registration.

        Most receivers return without waiting for anything; for these no coroutine of ours is made and no timer set,
        which would cost more than they do.

        Returns:
            None when all have accepted at once. Otherwise what to await for the outcome: None when all have accepted,
            else the first failure or burial.
        """
        return self._call(iter(category.receivers), message)

    def _call(self, receivers: Iterator[Receiver], message: Message) -> Coroutine[Any, Any, Outcome] | None:
        for receiver in receivers:
            if not receiver.is_async:
                return self._wait(receiver, self._call_in_thread(receiver, message), receivers, message)
            try:
                steps = receiver.call(message).__await__()  # type: ignore[union-attr]
                context = contextvars.copy_context()  # what a receiver sets there is its own, as in a task
                awaited = context.run(next, steps, _RETURNED)
            except BaseException as exc:  # SystemExit and KeyboardInterrupt of a receiver must not end the daemon
                return self._conclude(receiver, exc)
            if awaited is not _RETURNED:
                return self._wait(
                    receiver, self._bounded(receiver, _resumed(steps, awaited, context)), receivers, message
                )
        return None

    async def _wait(
        self, receiver: Receiver, call: Awaitable[object], others: Iterator[Receiver], message: Message
    ) -> Outcome:
        """Wait for one receiver, then call the others."""
        try:
            await call
        except BaseException as exc:
            return await self._conclude(receiver, exc)
        rest = self._call(others, message)
        return None if rest is None else await rest

    async def _conclude(self, receiver: Receiver, exc: BaseException) -> Outcome:
        outcome = self._outcome(receiver, exc)
        await _absorb_cancellation()
        return outcome

    async def _call_in_thread(self, receiver: Receiver, message: Message) -> None:
        """Run a plain function; a thread cannot be cancelled, so after a timeout it runs on unheard."""
        self._limiter.total_tokens = self._live.drain.concurrency
        call = anyio.to_thread.run_sync(_caught, receiver, message, abandon_on_cancel=True, limiter=self._limiter)
        result = await self._bounded(receiver, call)
        if isinstance(result, _Raised):
            raise result.exception
        if inspect.isawaitable(result):  # a plain function that returns a coroutine, e.g. a lambda
            await self._bounded(receiver, result)

    async def _bounded(self, receiver: Receiver, awaitable: Awaitable[object]) -> object:
        self.suspensions += 1
        timeout_s = self._live.drain.receiver_timeout_s
        deadline = asyncio.get_running_loop().time() + timeout_s
        work = Work(receiver.name)
        self._live.deadlines[work] = deadline
        try:
            async with asyncio.timeout_at(deadline) as limit:
                result = await awaitable
        except TimeoutError as exc:
            if limit.expired():
                raise _OverdueError(timeout_s) from exc
            raise
        finally:
            del self._live.deadlines[work]
        await _absorb_cancellation()
        return result

    def _outcome(self, receiver: Receiver, exc: BaseException) -> Outcome:
        if isinstance(exc, errors.RetryLater):
            return Failed(str(exc), exc.delay_s)
        if isinstance(exc, errors.Discard):
            return Buried(exc.reason)
        if isinstance(exc, _OverdueError):
            return Failed(f"{receiver.name} did not return within {exc.timeout_s:g} s")
        if isinstance(exc, asyncio.CancelledError):
            if is_being_ended():
                raise exc
            # The receiver cancelled itself, or was cancelled by something of its own: a failure like any other.
            return Failed(f"{receiver.name} was cancelled")
        return Failed(f"{receiver.name} raised {type(exc).__name__}{_words(exc)}", exception=exc)


def _words(exc: BaseException) -> str:
    try:
        text = str(exc)
    except Exception:
        return ", whose text cannot be had"
    return f": {text}" if text else ""


class _OverdueError(Exception):
    """A receiver did not return in time."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__(timeout_s)
        self.timeout_s = timeout_s


@dataclass(frozen=True, slots=True)
class _Raised:
    """What a plain function raised. Carried as a value: a future that holds GeneratorExit closes whoever awaits it."""

    exception: BaseException


def _caught(receiver: Receiver, message: Message) -> object:
    try:
        return receiver.call(message)
    except BaseException as exc:
        return _Raised(exc)


def is_being_ended() -> bool:
    """Whether the current task is cancelled by whoever owns it (a hard stop, a crash), and not by a receiver."""
    return anyio.current_effective_deadline() == -math.inf


async def _absorb_cancellation() -> None:
    """Take the cancellation that a receiver has asked of its own task, which is ours: the next one must not get it."""
    task = asyncio.current_task()
    if task is None or not task.cancelling() or is_being_ended():
        return
    try:
        await asyncio.sleep(0)
    except asyncio.CancelledError:
        if is_being_ended():
            raise
    take_back_cancellation()


def take_back_cancellation() -> None:
    """Let the current task go on after a cancellation that did not come from us."""
    task = asyncio.current_task()
    while task is not None and task.cancelling():
        task.uncancel()


@types.coroutine
def _resumed(
    steps: Generator[Any, Any, object], awaited: Any, context: contextvars.Context
) -> Generator[Any, Any, object]:
    """Go on, in its context, with a coroutine that has run up to its first suspension and waits for *awaited*."""
    while True:
        try:
            try:
                value = yield awaited
            except BaseException as exc:  # the task's cancellation, or the failure of what is awaited
                awaited = context.run(steps.throw, exc)
            else:
                awaited = context.run(steps.send, value)
        except StopIteration as end:
            return end.value
