"""The composition root: configuration -> registry -> pipeline -> signals. Start-up, run, shut-down."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import signal
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from outboxd import errors, log, producer, registry, sentry
from outboxd.housekeeping import Housekeeping
from outboxd.lifecycle import ServiceManager
from outboxd.load import Loaded, read_secret, session_dsn
from outboxd.once import drain_once
from outboxd.pipeline import Pipeline
from outboxd.stall import StallWatch
from outboxd.stopping import EXIT_HARD_STOP, Stopper, exit_now
from outboxd.version import __version__

if TYPE_CHECKING:
    from outboxd.registry import Registry

_log = log.get()

_T = TypeVar("_T")

Companion = Callable[[], Coroutine[Any, Any, None]]

WAIT_LOG_INTERVAL_S = 60.0
WAIT_PAUSE_S_MAX = 5.0
STATE_INTERVAL_S = 2.0
SUMMARY_INTERVAL_S = 60.0
LEFT_TASKS_S_MAX = 2.0


def run_daemon(load: Callable[[], Loaded]) -> int:
    """
    Run until SIGTERM.

    Args:
        load: Loads the configuration; called again on SIGHUP.

    Returns:
        0 after a clean stop, 1 after a hard one.

    Raises:
        ConfigError, PoolerError, FleetError: Before anything was delivered.
    """
    return run_to_the_end(Daemon(load).run())


def run_once(load: Callable[[], Loaded], *, json_output: bool, quiet: bool, max_seconds: float | None) -> int:
    """
    Drain what is due, print a summary, and end.

    Args:
        load: Loads the configuration.
        json_output: Print the summary as one JSON document.
        quiet: Print nothing when all went well.
        max_seconds: Stop claiming after so many seconds.

    Returns:
        0, or 1 when something failed and stays in the outbox.

    Raises:
        OutboxdError: With its exit code; nothing is waited for.
    """
    loaded = load()
    if quiet and loaded.config.log.level in ("debug", "info"):  # what goes well is not to be mailed by cron
        log.configure(loaded.config.log.format, "warning")
    registry_of_run = equip(loaded)
    work = drain_once(loaded, registry_of_run, json_output=json_output, quiet=quiet, max_seconds=max_seconds)
    return run_to_the_end(work)


def run_to_the_end(work: Coroutine[Any, Any, int]) -> int:
    """Run work, and end the tasks and threads that receivers leave behind."""
    return run_in_loop(_leave_nothing(work))


def run_in_loop(work: Coroutine[Any, Any, _T]) -> _T:
    """Run in an event loop, uvloop's when it is installed; long-lived objects are kept out of collections."""
    factory = None
    with contextlib.suppress(ImportError):
        import uvloop

        factory = uvloop.new_event_loop
    tune_collector()
    with asyncio.Runner(loop_factory=factory) as runner:
        return runner.run(work)


async def _leave_nothing(work: Coroutine[Any, Any, int]) -> int:
    """Run to the end, and give tasks and threads that receivers have left behind two seconds to end."""
    code = await work
    left = asyncio.all_tasks() - {asyncio.current_task()}
    for task in left:
        task.cancel()
    try:
        async with asyncio.timeout(LEFT_TASKS_S_MAX):
            await asyncio.gather(*left, return_exceptions=True)
            await asyncio.get_running_loop().shutdown_default_executor()
    except TimeoutError:
        exit_now(code)  # the event loop would wait for them for ever
    return code


def tune_collector() -> None:
    """
    Collect cycles more rarely.

    Each delivery allocates a few objects that die young and are in no cycle: collecting after 100 000 of them instead
    of 700 saves a tenth of the time.
    """
    gc.freeze()
    gc.set_threshold(100_000, 20, 50)


def build_registry(loaded: Loaded) -> Registry:
    """
    Import the receiver modules and join them with the configuration; says loudly when there is no receiver.

    Raises:
        ConfigError: A module does not import, a category is unknown, or there is no outbox to drain.
    """
    config = loaded.config
    for stranger in loaded.strangers:
        _log.warning("config.unknown_variable", variable=stranger)
    config.require_outboxes()
    built = registry.build(config, registry.load_receivers(config.receivers.modules, loaded.folder))
    if not built.receiver_count:
        _log.warning(
            "receivers.none",
            hint="no receiver is registered: every message will fail; name modules in [receivers] modules",
        )
    return built


def equip(loaded: Loaded) -> Registry:
    """
    Build the registry of this process, and have `outbox_context` use our configuration in its receivers.

    Raises:
        ConfigError: As `build_registry`.
    """
    built = build_registry(loaded)
    _let_receivers_produce(loaded, built)
    return built


def _let_receivers_produce(loaded: Loaded, built: Registry) -> None:
    """Have `outbox_context` use our configuration: what it would find by itself may be another one."""
    producer.use(producer.Producer(loaded, registry=built))


class Daemon:
    """
    One daemon.

    The first SIGTERM or SIGINT is a soft stop, the second one (or the end of `grace_period_s`) a hard one.
    """

    def __init__(self, load: Callable[[], Loaded]) -> None:
        self._load = load
        self._loaded = load()
        log.configure(self._loaded.config.log.format, self._loaded.config.log.level)
        self._registry = equip(self._loaded)
        self._manager = ServiceManager()
        self._reload = asyncio.Event()
        self._shown: list[str] = []

    async def run(self) -> int:
        """Start up, drain, shut down; returns the exit code."""
        self._pipeline = Pipeline(
            self._loaded.config,
            self._registry,
            lambda: session_dsn(self._loaded),
            redis_url=lambda: read_secret(self._loaded, "redis_url"),
            backfills=True,
        )
        self._housekeeping = Housekeeping(self._loaded.config, lambda: session_dsn(self._loaded))
        self._pipeline.live.on_progress = self._manager.progressed
        self._pipeline.live.on_fitness = self._show_state
        self._pipeline.live.on_failed = sentry.reporter(self._loaded.config.sentry)
        self._pipeline.live.look_every_s_max = self._manager.progress_every_s
        self._stopper = Stopper(self._pipeline)
        self._stopper.listen()
        asyncio.get_running_loop().add_signal_handler(signal.SIGHUP, self._reload.set)  # instead of a stop
        _log.info("daemon.starting", version=__version__, silo_mode=self._loaded.config.silo_mode)
        with StallWatch(lambda: self._pipeline.live.registry) as stall:
            async with self._looked_at(stall) as sampling:
                if await self._wait_for_database():
                    await self._drain(sampling)
        self._manager.stopping()
        await asyncio.to_thread(sentry.flush)
        hard = self._pipeline.live.stopping_hard
        _log.info("daemon.stopped", hard=hard, **self._pipeline.totals())
        return EXIT_HARD_STOP if hard else 0

    @contextlib.asynccontextmanager
    async def _looked_at(self, stall: StallWatch) -> AsyncIterator[list[Companion]]:
        """Answer questions over HTTP, if that is wanted; yields what must run beside the drain for the answers."""
        if not self._loaded.config.http.listen:
            yield []
            return
        from outboxd import http, metrics, readiness, sampler  # 10 MB that --once and a silent daemon do without

        sampling = sampler.Sampler(self._pipeline)
        metrics.time_deliveries([branch.meter for branch in self._pipeline.branches])
        with metrics.published(metrics.Collector(self._pipeline, sampling, stall)) as published:
            server = http.Server(self._loaded.config.http, lambda: readiness.reasons(self._pipeline), published)
            await server.open()
            try:
                yield [sampling.run]
            finally:
                await server.close()

    async def _wait_for_database(self) -> bool:
        """Open the pipeline, however long the database takes to come up or be migrated; False: stopped meanwhile."""
        pause_s, said_at = 0.2, -WAIT_LOG_INTERVAL_S
        while not self._stopper.stopping.is_set():
            try:
                await self._pipeline.open()
            except (errors.StoreUnavailable, errors.SchemaError, errors.StatementFailed) as exc:
                if time.monotonic() - said_at >= WAIT_LOG_INTERVAL_S:
                    said_at = time.monotonic()
                    _log.warning("daemon.waiting", error=str(exc), hint=exc.hint or None)
                    self._manager.status(f"waiting: {exc}")
                self._pipeline.live.beat()
                await self._pipeline.pause(pause_s)
                if self._reload.is_set():
                    self._reload.clear()
                    self._reload_now()
                pause_s = min(2 * pause_s, WAIT_PAUSE_S_MAX)
            else:
                return True
        return False

    async def _drain(self, companions: list[Companion]) -> None:
        await self._pipeline.run(
            self._announce_readiness,
            self._summarise,
            self._watch_state,
            self._reload_when_told,
            self._housekeeping.run,
            self._stopper.run,
            self._announce_stop,
            *companions,
        )

    async def _announce_readiness(self) -> None:
        """Tell the service manager now: no missing table holds up the others. Log once every outbox can be drained."""
        self._show_state()
        self._manager.ready()
        self._say_what_is_off()
        await self._pipeline.ready()
        _log.info("daemon.ready", outboxes=[branch.config.name for branch in self._pipeline.branches])

    def _show_state(self, done: str = "") -> None:
        """Show what is drained, or was *done*, and why the rest is not; without a claim session, nothing is."""
        self._shown = self._hindrances()
        if self._pipeline.claims.lost_by:
            self._manager.status(f"waiting: {self._pipeline.claims.lost_by}")
            return
        names = [branch.config.name for branch in self._pipeline.branches]
        drained = ", ".join(name for name, hindrance in zip(names, self._shown, strict=True) if not hindrance)
        waiting = [f"waiting: {hindrance}" for hindrance in self._shown if hindrance]
        self._manager.status("; ".join([*waiting, done or f"draining {drained or 'nothing'}"]))

    async def _watch_state(self) -> NoReturn:
        """Show it when an outbox begins to be hindered, and when that is over."""
        while True:
            await asyncio.sleep(STATE_INTERVAL_S)
            if self._hindrances() != self._shown:
                self._show_state()

    def _hindrances(self) -> list[str]:
        """Tell what keeps the outboxes, a text each; without a claim session, that one for all of them."""
        lost_by = self._pipeline.claims.lost_by
        return [lost_by or branch.hindrance for branch in self._pipeline.branches]

    async def _announce_stop(self) -> None:
        await self._stopper.stopping.wait()
        self._manager.stopping()

    async def _reload_when_told(self) -> None:
        while True:
            await self._reload.wait()
            self._reload.clear()
            self._manager.reloading()
            self._reload_now()
            self._manager.ready()

    def _reload_now(self) -> None:
        """Take what can change while running; a bad configuration changes nothing."""
        try:
            loaded = self._load()
            if loaded.source != self._loaded.source:
                found = f"found {loaded.source} instead" if loaded.source else "found no other"
                raise errors.ConfigError([f"the configuration file {self._loaded.source} is gone; {found}"])
            functions = registry.load_receivers(self._loaded.config.receivers.modules, self._loaded.folder)
            built = registry.build(loaded.config, functions)
        except errors.OutboxdError as exc:
            _log.error("config.refused", error=str(exc), hint=exc.hint or None)
            return
        kept = _need_restart(self._loaded, loaded)
        if kept:
            _log.warning("config.restart_needed", keys=kept)
        log.configure(loaded.config.log.format, loaded.config.log.level)
        self._pipeline.apply(loaded.config, built)
        _let_receivers_produce(loaded, built)
        self._housekeeping.keep_days = loaded.config.dead_letter.keep_days
        _log.info("config.reloaded", source=str(loaded.source or ""))

    async def _summarise(self) -> NoReturn:
        """Two lines a minute: what was done since the last one; what is switched off, while something is."""
        before = self._pipeline.totals()
        while True:
            await asyncio.sleep(SUMMARY_INTERVAL_S)
            now = self._pipeline.totals()
            done = {key: now[key] - before[key] for key in now}
            before = now
            _log.info("drain.summary", **done)
            self._say_what_is_off()
            self._show_state(", ".join(f"{key} {count}" for key, count in done.items()) + " in the last minute")

    def _say_what_is_off(self) -> None:
        if off := self._pipeline.switchboard.switched_off():
            _log.warning("drain.switched_off", **off)


RESTART_KEYS = (
    "dsn",
    "session_dsn",
    "redis_url",
    "silo_mode",
    "schema",
    "outbox",
    "http",
    "backfill",
    "model",
    "sentry",
)


def _need_restart(old: Loaded, new: Loaded) -> list[str]:
    """Name the keys that changed and are only read at the start."""
    changed = [
        key
        for key in RESTART_KEYS
        if getattr(old.config, key) != getattr(new.config, key)
        and key not in new.secret_files  # read at each reconnect
    ]
    if old.config.receivers != new.config.receivers:
        changed.append("receivers.modules")
    return changed
