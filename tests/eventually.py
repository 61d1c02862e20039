"""Waiting for something to become true: the only place where a test may sleep."""

from __future__ import annotations

import asyncio
import inspect
import time
from typing import TYPE_CHECKING, TypeVar, overload

if TYPE_CHECKING:
    from collections.abc import Awaitable, Callable

T = TypeVar("T")

POLL_S = 0.02
PATIENCE_S = 60.0  # never the limit of what a test is about: a busy machine may be slow


@overload
async def eventually(
    check: Callable[[], Awaitable[T]], timeout_s: float = ..., *, what: str = ..., error: str = ...
) -> T: ...
@overload
async def eventually(check: Callable[[], T], timeout_s: float = ..., *, what: str = ..., error: str = ...) -> T: ...


async def eventually(
    check: Callable[[], T | Awaitable[T]], timeout_s: float = PATIENCE_S, *, what: str = "", error: str = ""
) -> T:
    """
    Await until `check` returns something true, and return that.

    Args:
        check: A function or a coroutine function. An AssertionError that it raises counts as "not yet",
            so the failure can say what was missing.
        what: Completes "waited in vain for"; without it the function's name and line are shown.
        error: Added to the failure, e.g. a log.

    Raises:
        AssertionError: `timeout_s` seconds have passed; says what the last try returned or raised.
    """
    deadline = time.monotonic() + timeout_s
    while True:
        outcome = await _attempt(check)
        if outcome and not isinstance(outcome, AssertionError):
            return outcome
        if time.monotonic() >= deadline:
            text = f"waited {timeout_s:g} s in vain for {what or _describe(check)}; last: {outcome!r}"
            raise AssertionError(f"{text}\n{error}" if error else text)
        await asyncio.sleep(POLL_S)


async def _attempt(check: Callable[[], T | Awaitable[T]]) -> T | AssertionError:
    try:
        outcome = check()
        return await outcome if inspect.isawaitable(outcome) else outcome
    except AssertionError as exc:
        return exc


def _describe(check: Callable[[], object]) -> str:
    code = getattr(check, "__code__", None)
    name = getattr(check, "__qualname__", repr(check))
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name
