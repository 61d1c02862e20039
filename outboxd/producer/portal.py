"""An event loop in a thread of its own, for flushes that are asked for where there is none."""

from __future__ import annotations

import asyncio
import concurrent.futures
import os
import threading
from collections.abc import Coroutine
from typing import Any, TypeVar

Result = TypeVar("Result")


class Portal:
    """Runs coroutines for threads that wait for them; the loop is begun when it is first needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._pid = 0
        self._thread: threading.Thread | None = None

    def run(self, work: Coroutine[Any, Any, Result], *, otherwise: Coroutine[Any, Any, Result]) -> Result:
        """
        Run to the end; whoever is interrupted meanwhile cancels it.

        Args:
            work: What is to be run.
            otherwise: What is run instead, in a loop that ends with it, when our own loop's thread asks: it would wait
                for itself.
        """
        if threading.current_thread() is self._thread:
            work.close()
            with concurrent.futures.ThreadPoolExecutor(1) as executor:
                return executor.submit(asyncio.run, otherwise).result()
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
