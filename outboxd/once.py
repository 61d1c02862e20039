"""`outboxd --once`: drain what is due, say what was done, and end. The daemon's own pipeline with a stop condition."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import sys
import time
from typing import TYPE_CHECKING, Any

import anyio
import click
import msgspec

from outboxd import display, errors, sentry
from outboxd.housekeeping import Housekeeping
from outboxd.load import Loaded, read_secret, session_dsn
from outboxd.pipeline import Pipeline
from outboxd.stall import StallWatch
from outboxd.stopping import EXIT_HARD_STOP, Stopper

if TYPE_CHECKING:
    from collections.abc import Mapping

    from outboxd.registry import Registry

HOUSEKEEPING_BATCHES_MAX = 10
HOUSEKEEPING_S_MAX = 10.0


@dataclasses.dataclass(frozen=True)
class Summary:
    """What the run did; its fields are the keys of the JSON document."""

    delivered: int
    coalesced: int
    failed_shards: int
    skipped_shards: int
    remaining_due: int
    backfilled: dict[str, int]
    buried: int
    seconds: float

    @property
    def all_went_well(self) -> bool:
        """Whether there is nothing that somebody should hear of."""
        return not self.failed_shards and not self.buried

    def text(self, off: Mapping[str, Any]) -> str:
        """
        Write it for people.

        Args:
            off: What is switched off, as `SwitchBoard.switched_off` has it.
        """
        walked = ", ".join(f"{rows} rows of {table}" for table, rows in self.backfilled.items())
        return (
            f"delivered {self.delivered}, coalesced {self.coalesced}, buried {self.buried} in {self.seconds:.1f} s\n"
            f"shards: {self.failed_shards} failed, {self.skipped_shards} switched off, {self.remaining_due} still due"
            + (f"\nbackfilled {walked}" if walked else "")
            + (f"\nswitched off: {_in_words(off)}" if off else "")
        )


async def drain_once(
    loaded: Loaded, registry: Registry, *, json_output: bool, quiet: bool, max_seconds: float | None
) -> int:
    """
    Drain until a whole pass finds nothing that was not failed, skipped or lost in this run.

    Returns:
        The exit code: 0, or 1 when something failed and stays in the outbox, or after a hard stop.

    Raises:
        OutboxdError: An outbox could not be drained; the summary of the others has been printed.
    """
    started_at = time.monotonic()
    pipeline = Pipeline(
        loaded.config,
        registry,
        lambda: session_dsn(loaded),
        bounded=True,
        redis_url=lambda: read_secret(loaded, "redis_url"),
        backfills=True,
    )
    pipeline.live.on_failed = sentry.reporter(loaded.config.sentry)
    stopper = Stopper(pipeline, expected=True)
    stopper.listen()  # once registered, a process that is killed by a signal would pass for a death
    try:
        await pipeline.open()
        ran = await pipeline.claims.lock_once(_subject(loaded))
        if ran:
            await _run(pipeline, stopper, max_seconds)
            await stopper.unless_stopping(_tidy(loaded, pipeline))
        elif not quiet:
            display.say("another --once on this configuration is running", err=True)
    finally:
        await pipeline.close()
        await asyncio.to_thread(sentry.flush)
    summary = _summary(pipeline, time.monotonic() - started_at)
    if json_output:
        click.echo(msgspec.json.encode(summary).decode())
    elif ran and not (quiet and summary.all_went_well):
        display.say(summary.text(pipeline.switchboard.switched_off()))
    for branch in pipeline.branches:
        if branch.error is not None:
            raise branch.error
    if pipeline.backfill is not None and pipeline.backfill.unavailable:
        raise errors.StoreUnavailable(f"backfills: {pipeline.backfill.unavailable}")
    return EXIT_HARD_STOP if pipeline.live.stopping_hard or summary.failed_shards else 0


async def _run(pipeline: Pipeline, stopper: Stopper, max_seconds: float | None) -> None:
    if max_seconds is not None:
        asyncio.get_running_loop().call_later(max_seconds, stopper.stop)
    # What receivers print must not spoil the document on stdout.
    with StallWatch(lambda: pipeline.live.registry), contextlib.redirect_stdout(sys.stderr):
        await pipeline.run(stopper.run)


async def _tidy(loaded: Loaded, pipeline: Pipeline) -> None:
    with anyio.move_on_after(HOUSEKEEPING_S_MAX):
        await Housekeeping(loaded.config, pipeline.dsn).tidy(HOUSEKEEPING_BATCHES_MAX)


def _subject(loaded: Loaded) -> str:
    """Tell one configuration from another, for the lock that keeps two runs of the same apart."""
    outboxes = [(outbox.name, outbox.table) for outbox in loaded.config.outboxes]
    return f"{loaded.config.silo_mode} {loaded.config.schema} {outboxes}"


def _in_words(off: Mapping[str, Any]) -> str:
    shards = list(off["first_shards"])
    if off["shards"] > len(shards):
        shards.append(f"{off['shards'] - len(shards):,} more")
    kinds = {"outbox": off["outboxes"], "category": off["categories"], "shard": shards, "backfill of": off["backfills"]}
    return "; ".join(f"{kind} {', '.join(names)}" for kind, names in kinds.items() if names)


def _summary(pipeline: Pipeline, seconds: float) -> Summary:
    totals = pipeline.totals()
    bounded = [branch.bounded for branch in pipeline.branches if branch.bounded is not None]
    return Summary(
        delivered=totals["delivered"],
        coalesced=totals["retired"] - totals["delivered"],
        failed_shards=sum(len(b.failed) for b in bounded),
        skipped_shards=sum(len(b.skipped) for b in bounded),
        remaining_due=pipeline.remaining_due,
        backfilled=pipeline.backfill.rows() if pipeline.backfill is not None else {},
        buried=totals["buried"],
        seconds=round(seconds, 3),
    )
