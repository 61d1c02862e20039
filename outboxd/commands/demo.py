"""`outboxd demo`: a database, a shop and the daemon, to watch them work."""

from __future__ import annotations

import asyncio
import math
from pathlib import Path
from typing import TYPE_CHECKING

import click

from outboxd import display, errors, log
from outboxd.demo.show import Show

if TYPE_CHECKING:
    from outboxd.commands import Context


@click.command(name="demo")
@click.option(
    "--seconds", type=click.FloatRange(min=0), default=20, show_default=True, help="How long; 0: until Ctrl-C."
)
@click.option(
    "--data",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Keep the database in DIR; a later demo goes on with it. Default: thrown away.",
)
@click.pass_obj
def command(context: Context, *, seconds: float, data: Path | None) -> None:
    """
    Show outboxd at work on a database of its own.

    Starts a PostgreSQL server, creates the tables, runs a small shop that writes messages, and the daemon that
    delivers them. Needs no root and no PostgreSQL; leaves no process and, without --data, no file behind.
    """
    if not math.isfinite(seconds):
        raise errors.UsageError("--seconds takes a number of seconds; 0 means until Ctrl-C")
    if context.config_path is not None or context.overrides:
        raise errors.UsageError(
            "the demo has a database and a configuration of its own: it takes no --config, --dsn or --silo-mode"
        )
    log.configure("auto", "error")
    try:
        asyncio.run(_show(seconds, data))
    finally:
        display.flush()  # where the terminal is gone, a last flush would turn a clean end into an error


async def _show(seconds: float, data: Path | None) -> None:
    await Show(seconds, data).run()
