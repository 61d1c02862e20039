"""
The command line: global options, and a table of sub-commands that are imported when they are used.

A sub-command is a file of this folder with one click command named `command`. It gets a `Context`
(`@click.pass_obj`), prints results to stdout and raises `OutboxdError` when it cannot go on.
`run` is the one place that turns errors into text and exit codes.
"""

from __future__ import annotations

import contextlib
import errno
import importlib
import math
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from outboxd import display, errors, suggest
from outboxd.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from outboxd.load import Loaded

INTERRUPTED = 130
BROKEN_PIPE = 141
OUTPUT_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)

# Name -> one-line help. Dashes become underscores in the module's name. The help stands here so that
# `outboxd --help` imports no command; a test keeps both in step.
COMMANDS = {
    "init": "Write a small commented configuration and a receiver module.",
    "migrate": "Create or complete the outbox tables and outboxd's own schema.",
    "check": "Check configuration, receivers, database and schema.",
    "catalog": "List scopes, categories, outboxes, models and receivers.",
    "enqueue": "Write one message to an outbox.",
    "shards": "Show the deepest shards, or the stuck ones.",
    "inspect": "Show the messages of one shard.",
    "depth": "Show how many messages of one category wait.",
    "object": "Show the messages about one object.",
    "explain": "Say why a shard does not move.",
    "doctor": "Find out what keeps the system from delivering.",
    "health": "Ask the running daemon whether it works.",
    "options": "Show, set and unset run-time options.",
    "pause": "Switch off a shard, category, outbox or backfill, or show what is off.",
    "resume": "End pauses.",
    "retry": "Make what waits in a shard, or in all stuck shards, due now.",
    "drain": "Drain one shard, in this process, now.",
    "bury": "Move messages to the dead letters.",
    "dead-letters": "List dead letters, put them back, delete them.",
    "backfill": "Show backfills of existing tables, plan them, run and steer them.",
    "demo": "Show outboxd at work on a database of its own.",
}


@dataclass(frozen=True, slots=True)
class Context:
    """The global options, for sub-commands."""

    config_path: Path | None = None
    overrides: dict[str, Any] = field(default_factory=dict)

    def read(self) -> Loaded:
        """
        Load the configuration; may be called again to reload.

        Raises:
            ConfigError: All problems of file, environment and flags at once.
        """
        from outboxd import load  # `outboxd --help` must not pay for it

        return load.load(self.config_path, overrides=self.overrides)

    def load(self) -> Loaded:
        """Load the configuration as `read` does, and log as it says."""
        from outboxd import log

        loaded = self.read()
        log.configure(loaded.config.log.format, loaded.config.log.level)
        return loaded


class ReaderLeftError(Exception):
    """Whoever read our output has closed it, as `head` does: nothing to report, and no one to report to."""


@contextlib.contextmanager
def _noticing_who_leaves() -> Iterator[None]:
    try:
        yield
    except BrokenPipeError as exc:
        raise ReaderLeftError from exc


class LazyGroup(click.Group):
    """A group that knows its commands by name and imports only the one that is used."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names in the order of the table, which is the order of first use."""
        return list(COMMANDS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command:
        """Import the command's module; an unknown name is a usage error that names the nearest."""
        if cmd_name not in COMMANDS:
            ctx.fail(f"there is no command {cmd_name}{suggest.nearest(cmd_name, COMMANDS)}")
        module = importlib.import_module(f"{__name__}.{cmd_name.replace('-', '_')}")
        command: click.Command = module.command
        return command

    def make_context(self, *arguments: Any, **options: Any) -> click.Context:
        """Read the command line, and print --help and --version; a closed pipe is treated as in `invoke`."""
        with _noticing_who_leaves():
            return super().make_context(*arguments, **options)

    def invoke(self, ctx: click.Context) -> Any:
        """Run; click itself would turn a closed pipe into exit code 1, which means something else here."""
        with _noticing_who_leaves():
            return super().invoke(ctx)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """List the commands from the table, without importing them."""
        with formatter.section("Commands"):
            formatter.write_dl(list(COMMANDS.items()))


@click.group(
    cls=LazyGroup,
    name="outboxd",
    invoke_without_command=True,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    epilog="Exit codes: 0 done; 1 something failed and stays in the outbox; 2 usage; "
    "69 database or Redis out of reach; 78 configuration or schema wrong.",
)
@click.option(
    "--config",
    "config_path",
    metavar="FILE",
    type=click.Path(readable=False, path_type=Path),
    help="Configuration file.",
)
@click.option("--dsn", metavar="DSN", help="Database. Visible in the process list: prefer OUTBOX_DSN.")
@click.option(
    "--silo-mode",
    type=click.Choice(["monolith", "region", "control"]),
    help="Which outboxes this process drains.",
)
@click.option("--once", is_flag=True, help="Drain what is due, backfill for a minute's allowance, and exit.")
@click.option("--json", "json_output", is_flag=True, help="With --once: print the summary as JSON.")
@click.option("--quiet", is_flag=True, help="With --once: print nothing when all went well.")
@click.option(
    "--max-seconds",
    type=click.FloatRange(min=0, min_open=True),
    metavar="N",
    help="With --once: end after N seconds.",
)
@click.version_option(__version__, prog_name="outboxd", message="%(prog)s %(version)s")
@click.pass_context
def cli(
    ctx: click.Context,
    *,
    config_path: Path | None,
    dsn: str | None,
    silo_mode: str | None,
    once: bool,
    json_output: bool,
    quiet: bool,
    max_seconds: float | None,
) -> None:
    """
    Drain transactional outbox tables in PostgreSQL.

    Without a command: run as a daemon until SIGTERM. Options stand before the command.
    """
    ctx.obj = Context(config_path, _given(dsn=dsn, silo_mode=silo_mode))
    only_once = _given(__json=json_output or None, __quiet=quiet or None, __max_seconds=max_seconds)
    if max_seconds is not None and not math.isfinite(max_seconds):
        raise click.UsageError("--max-seconds takes a number of seconds")
    if only_once and not once:
        options = ", ".join(name.replace("_", "-") for name in only_once)
        raise click.UsageError(f"{options}: only with --once, before any command")
    if ctx.invoked_subcommand is not None:
        if once:
            raise click.UsageError(f"--once does not go with a command ({ctx.invoked_subcommand})")
        return
    ctx.exit(_run_app(ctx.obj, once=once, json_output=json_output, quiet=quiet, max_seconds=max_seconds))


def _given(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


def _run_app(context: Context, *, once: bool, **options: Any) -> int:
    from outboxd import main as app  # the database driver loads only when it is needed

    code: int = app.run_once(context.load, **options) if once else app.run_daemon(context.read)
    return code


def run(arguments: Sequence[str] | None = None) -> int:
    """
    Run one command line and return its exit code.

    Args:
        arguments: Without the program's name; None means those of this process.

    Expected errors are printed as `error: …` and `hint: …` on stderr; others keep their traceback. What an act
    could not print on the way (`display.echo`) becomes the exit code at its end, unless something went wrong.
    """
    display.lost.clear()
    try:
        result = cli.main(arguments, prog_name="outboxd", standalone_mode=False)
        sys.stdout.flush()
        if display.lost:
            raise display.lost[0]
    except click.ClickException as exc:
        _report_usage(exc)
        return exc.exit_code
    except errors.OutboxdError as exc:
        report(exc)
        return exc.exit_code
    except (ReaderLeftError, BrokenPipeError):
        display.lead_nowhere(sys.stdout)
        return BROKEN_PIPE
    except OSError as exc:
        if exc.errno not in OUTPUT_ERRORS:
            raise
        display.lead_nowhere(sys.stdout)
        display.say(f"error: cannot write the output: {exc.strerror}", err=True)
        return 1
    except KeyboardInterrupt:
        return INTERRUPTED
    except click.Abort as exc:
        return INTERRUPTED if isinstance(exc.__context__, KeyboardInterrupt) else 1  # at a question it has no cause
    return result if isinstance(result, int) else 0


def report(exc: errors.OutboxdError) -> None:
    """Print an expected error, and what to do about it, on stderr."""
    display.say(f"error: {exc}", err=True)
    if exc.hint:
        display.say(f"hint: {exc.hint}", err=True)


def _report_usage(exc: click.ClickException) -> None:
    """Print what click has found wrong with a command line as all other errors are printed."""
    if isinstance(exc, click.exceptions.NoArgsIsHelpError):  # it carries the help itself
        display.echo(exc.format_message(), err=True)
        return
    text = exc.format_message().rstrip(".")
    context = exc.ctx if isinstance(exc, click.UsageError) else None
    hint = f"See: {context.command_path} --help" if context is not None else ""
    if isinstance(exc, click.NoSuchOption) and re.fullmatch(r"-\d", exc.option_name):
        hint = "What begins with a dash and is no option stands last, behind -- and all options."
    report(errors.UsageError(text[:1].lower() + text[1:], hint=hint))
