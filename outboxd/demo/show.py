"""The demo from start to end: a server, the tables, the daemon, the shop; figures; the sum."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import math
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import anyio

from outboxd import errors, load, migrate, session
from outboxd.demo import daemon as daemon_process
from outboxd.demo import screen as screens
from outboxd.demo.figures import Figures, Watch
from outboxd.demo.shop import Shop
from outboxd.embedded import embedded_postgres

if TYPE_CHECKING:
    from outboxd.config import Config
    from outboxd.demo.daemon import Daemon
    from outboxd.demo.screen import Screen

CONFIG = Path(__file__).with_name("demo.toml")

NEXT = """\
What to do next, with a database of your own:

  {program} init       # writes outboxd.toml and outbox_receivers.py
  export OUTBOX_DSN=postgresql://USER:PASSWORD@HOST/DATABASE
  {program} migrate    # creates the outbox table
  {program}            # drains it until it is stopped

The demo's own configuration and receivers, to read: {folder}"""


class Show:
    """
    One run of the demo.

    Args:
        seconds: How long the shop is open; 0 until a signal.
        data: Where the database is kept; None: nowhere.
    """

    def __init__(self, seconds: float, data: Path | None) -> None:
        self._seconds = seconds
        self._data = data
        self._stopped = asyncio.Event()
        self._starting = anyio.CancelScope()
        self._has_started = False
        self._screen = screens.Screen(seconds, self._stop)

    async def run(self) -> None:
        """
        Run it.

        Raises:
            OutboxdError: A part of it did not start, or ended unasked, or the sum does not add up.
            BrokenPipeError: Whoever read the output has left.
            UsageError: Standard output cannot be written to, e.g. on a full disk.
        """
        _listen_to_signals(self._stop)
        figures, transactions = None, 0
        self._introduce()
        async with contextlib.AsyncExitStack() as stack:
            stack.callback(self._screen.clear)
            with self._starting:
                stage = await self._start(stack)
                self._has_started = True
            if self._has_started:
                figures = await stage.play(self._seconds, self._stopped, self._screen)
                transactions = stage.shop.transactions
        self._conclude(figures, transactions)
        if isinstance(self._screen.gone, BrokenPipeError):
            raise self._screen.gone
        # EIO: the terminal was closed, and so nobody has to be told.
        if self._screen.gone is not None and self._screen.gone.errno != errno.EIO:
            raise errors.UsageError(f"cannot write the output: {self._screen.gone.strerror}")

    def _stop(self) -> None:
        """End it, at whatever point it is: what is being started is given up, what runs is stopped in order."""
        self._stopped.set()
        if not self._has_started:
            self._starting.cancel()

    def _introduce(self) -> None:
        until = f"for {self._seconds:g} s" if self._seconds else "until Ctrl-C"
        where = f"in {self._data}" if self._data else "thrown away afterwards"
        self._screen.say(
            f"outboxd demo: a PostgreSQL of its own ({where}), a shop that changes orders and members, "
            f"and the outboxd daemon that delivers the shop's messages, and writes one for each member that was there "
            f"before, {until}."
        )

    async def _start(self, stack: contextlib.AsyncExitStack) -> Stage:
        self._screen.say("starting PostgreSQL ...")
        dsn = await stack.enter_async_context(embedded_postgres(self._data, durable=True))
        config = load.load(CONFIG, environ={}, overrides={"dsn": dsn}).config
        self._screen.say("creating the tables: outboxd migrate ...")
        await _migrate(dsn, config)
        shop = Shop(dsn, config)
        await shop.open()
        watch = Watch(dsn, config, shop)
        stack.push_async_callback(watch.close)
        await watch.open()
        self._screen.say("starting the daemon: outboxd --config demo.toml ...")
        daemon = await stack.enter_async_context(daemon_process.running(CONFIG, dsn))
        await daemon.ready()
        return Stage(shop, daemon, watch)

    def _conclude(self, figures: Figures | None, transactions: int) -> None:
        say = self._screen.say
        if figures is None:
            say("\nStopped before the shop had opened. Nothing is left running.")
            return
        self._screen.conclude(figures, transactions)
        if not figures.adds_up:
            raise errors.OutboxdError(
                f"the sum does not add up: the outbox holds {figures.counted} rows, {figures.waiting} were expected"
            )
        kept = f"the database is in {self._data}" if self._data else "the database is gone"
        say(f"\nFailed deliveries, each to be tried again in 2, 4, 8 ... s: {figures.failures:,}.")
        say(f"All processes have ended, {kept}.\n")
        say(NEXT.format(program=screens.program(), folder=CONFIG.parent), verbatim=True)


class Stage:
    """
    Everything that was started.

    Args:
        shop: Not open yet.
        daemon: Ready.
        watch: Takes the figures.
    """

    def __init__(self, shop: Shop, daemon: Daemon, watch: Watch) -> None:
        self.shop = shop
        self._daemon = daemon
        self._watch = watch

    async def play(self, seconds: float, stopped: asyncio.Event, screen: Screen) -> Figures:
        """
        Open the shop and show figures until time is up or `stopped` is set.

        Returns:
            The figures after shop and daemon have stopped, in this order.

        Raises:
            OutboxdError: The shop, the daemon or the database ended unasked.
        """
        self._watch.begin()
        try:
            async with anyio.create_task_group() as tasks:
                tasks.start_soon(self.shop.run)
                await self._show(seconds, stopped, screen)
                self.shop.close()
        except BaseExceptionGroup as group:
            raise _first(group) from group
        await self._daemon.stop()
        if not self._daemon.stopped:
            raise self._daemon.failure()
        return await self._watch.take(self._daemon, final=True)

    async def _show(self, seconds: float, stopped: asyncio.Event, screen: Screen) -> None:
        ends_at = time.monotonic() + (seconds or math.inf)
        while not stopped.is_set() and time.monotonic() < ends_at:
            with anyio.move_on_after(min(screen.interval_s, ends_at - time.monotonic())):
                await stopped.wait()
            if self._daemon.ended.is_set():
                raise self._daemon.failure()
            screen.show(await self._watch.take(self._daemon))


def _first(group: BaseExceptionGroup[BaseException]) -> BaseException:
    """Find the error that has ended the others; a group would be reported as a crash."""
    first = group.exceptions[0]
    return _first(first) if isinstance(first, BaseExceptionGroup) else first


def _listen_to_signals(stop: Callable[[], None]) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:  # nohup wants it to go on
        loop.add_signal_handler(signal.SIGHUP, stop)


async def _migrate(dsn: str, config: Config) -> None:
    connection = await session.connect(dsn, name="migrate")
    try:
        await migrate.migrate(connection, config)
    finally:
        await session.close_quietly(connection)
