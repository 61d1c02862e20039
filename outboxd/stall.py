"""
Noticing that a receiver blocks the event loop, and naming it.

A thread of its own looks whether the loop still turns; if not, it reads the main thread's stack, which shows exactly
who is at work. The loop cannot tell this itself, least of all when it never turns again.
"""

from __future__ import annotations

import asyncio
import sys
import threading
import time
from types import CodeType, FrameType, TracebackType
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from collections.abc import Callable

    from outboxd.registry import Registry

log = structlog.get_logger()

HEARTBEAT_S = 0.2
BLOCKED_S = 1.0
WORST_KEPT_S = 60.0
"""For so long, and up to twice as long, the worst lateness is told: no scraper of the usual pace misses it."""


class StallWatch:
    """
    Warns, as `loop.blocked`, when the event loop has not turned for a second. Use as a context manager in the loop.

    Args:
        registry: Tells whose code a receiver's is.
    """

    def __init__(self, registry: Callable[[], Registry]) -> None:
        self._registry = registry
        self._beat_at = time.monotonic()
        self._main_thread = threading.get_ident()
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, name="outboxd-stall", daemon=True)
        self._handle: asyncio.TimerHandle | None = None
        self._worst_since = self._beat_at
        self._worst_s = self._worst_before_s = 0.0

    @property
    def worst_s(self) -> float:
        """How late the loop was at its worst in the last one to two minutes, whoever asks."""
        return max(self._worst_s, self._worst_before_s)

    def __enter__(self) -> StallWatch:
        self._beat()
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, exc: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ended.set()
        if self._handle is not None:
            self._handle.cancel()

    def _beat(self) -> None:
        now = time.monotonic()
        late_s = now - self._beat_at - HEARTBEAT_S
        if now - self._worst_since >= WORST_KEPT_S:
            self._worst_since, self._worst_before_s, self._worst_s = now, self._worst_s, 0.0
        self._worst_s = max(self._worst_s, late_s)
        self._beat_at = now
        self._handle = asyncio.get_running_loop().call_later(HEARTBEAT_S, self._beat)

    def _watch(self) -> None:
        warned_for = 0.0
        while not self._ended.wait(HEARTBEAT_S):
            beat_at = self._beat_at
            blocked_s = time.monotonic() - beat_at
            if blocked_s > BLOCKED_S and beat_at != warned_for:
                warned_for = beat_at
                self._warn(blocked_s)

    def _warn(self, blocked_s: float) -> None:
        frame = sys._current_frames().get(self._main_thread)
        if frame is None:
            return
        receiver, place = _suspect(frame, _codes(self._registry()))
        log.warning("loop.blocked", seconds=round(blocked_s, 1), receiver=receiver, at=place)


def _codes(registry: Registry) -> dict[CodeType, str]:
    receivers = [r for category in registry.categories.values() for r in category.receivers]
    return {code: r.name for r in receivers if (code := getattr(r.call, "__code__", None)) is not None}


def _suspect(innermost: FrameType, codes: dict[CodeType, str]) -> tuple[str | None, str]:
    """Return the receiver on the stack, if any, and the innermost place."""
    place = f"{innermost.f_code.co_filename}:{innermost.f_lineno}"
    frame: FrameType | None = innermost
    while frame is not None:
        if frame.f_code in codes:
            return codes[frame.f_code], f"{frame.f_code.co_filename}:{frame.f_lineno}"
        frame = frame.f_back
    return None, place
