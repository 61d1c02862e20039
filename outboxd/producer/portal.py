"""An event loop in a thread of its own, for flushes that are asked for where there is none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
import types
from collections.abc import Coroutine
from typing import Any, TypeVar

from outboxd import errors

Result = TypeVar("Result")


def refuse_greenlets() -> None:
    """
    Refuse where threads are none: our loop would run in everybody's thread, and Django refuse whatever follows there.

    Raises:
        OutboxContextError: gevent or eventlet has replaced them.
    """
    if not isinstance(threading.get_ident, types.BuiltinFunctionType):
        raise errors.OutboxContextError(
            "this needs a thread of its own, and gevent or eventlet has made greenlets of threads",
            hint="Say flush=False there: the daemon delivers. Or use real threads: gunicorn -k gthread.",
        )


class Portal:
    """Runs coroutines for threads that wait for them; the loop is begun when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, Result], *, otherwise: Coroutine[Any, Any, Result] | None = None) -> Result:
        """
        Run to the end; whoever is interrupted meanwhile cancels it.

        Args:
            work: What is to be run.
            otherwise: What is run instead when our own loop's thread asks, which would wait for itself: in a loop that
                ends with it.

        Raises:
            OutboxContextError: There are no threads; see `refuse_greenlets`.
        """
        try:
            refuse_greenlets()
        except errors.OutboxContextError:
            work.close()
            if otherwise is not None:
                otherwise.close()
            raise
        if threading.current_thread() is self._thread:
            if otherwise is not None:
                work.close()
            with concurrent.futures.ThreadPoolExecutor(1) as executor:
                return executor.submit(asyncio.run, work if otherwise is None else otherwise).result()
        if otherwise is not None:
            otherwise.close()
        future = asyncio.run_coroutine_threadsafe(work, self._running())
        try:
            return future.result()
        except concurrent.futures.CancelledError:
            raise
        except BaseException:
            future.cancel()
            raise

    def _running(self) -> asyncio.AbstractEventLoop:
        with self._lock:
            if self._loop is None or self._pid != os.getpid():  # a fork has no threads but the one that forked
                self._loop, self._pid = asyncio.new_event_loop(), os.getpid()
                self._thread = threading.Thread(target=self._loop.run_forever, name="outboxd-flush", daemon=True)
                self._thread.start()
            return self._loop


PORTAL = Portal()
