"""Options and manners that several sub-commands have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import click
import msgspec

from outboxd import choose, errors
from outboxd.switching import By, account

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

with_json = click.option("--json", "as_json", is_flag=True, help="One JSON document: a list of objects.")
with_sql = click.option("--sql", "as_sql", is_flag=True, help="Print a query for psql instead; needs no connection.")
with_yes = click.option("--yes", is_flag=True, help="Do not ask.")


def with_outbox(function: Decorated) -> Decorated:
    """Add --outbox and --region, as `outbox` and `region`; `choose.choose_outbox` says what they mean."""
    region = click.option("--region", metavar="NAME", help="Region, for an outbox that shards by region.")
    outbox = click.option("--outbox", metavar="NAME", help="Outbox; needed when more than one fits.")
    return outbox(region(function))


def with_reason(function: Decorated) -> Decorated:
    """Add --reason and --expires, as `reason` and `expires`."""
    expires = click.option("--expires", metavar="DURATION", help="End by itself: 90s, 15m, 2h, 3d. Default: never.")
    reason = click.option("--reason", metavar="TEXT", help="Why; shown wherever this is.")
    return reason(expires(function))


with_author = click.option("--author", metavar="NAME", help="Who; default: your account.")


def with_target(function: Decorated) -> Decorated:
    """Add what names one thing that can be paused; `switching.choose_target` takes these arguments."""
    options = (
        click.option("--scope", metavar="SCOPE", help="With --shard: its scope, by name or number."),
        click.option("--shard", metavar="ID", help="One shard, in every outbox."),
        click.option("--region", metavar="NAME", help="With --shard: only in this region."),
        click.option("--category", metavar="CATEGORY", help="One category, by name or number, in every outbox."),
        click.option("--outbox", metavar="NAME", help="One outbox."),
        click.option("--backfill", metavar="TABLE", help="The backfill of one table."),
        click.option("--backfill-all", is_flag=True, help="The backfills of all tables."),
    )
    for option in reversed(options):
        function = option(function)
    return function


def by(reason: str | None, expires: str | None, author: str | None = None) -> By:
    """
    Read --reason, --expires and --author.

    Raises:
        UsageError: The duration is none.
        InvalidOutboxError: A text that PostgreSQL cannot store.
    """
    return By(
        author=choose.parse_text(author, "--author") if author else account(),
        reason=choose.parse_text(reason, "--reason") if reason else None,
        expires=None if expires is None else choose.parse_duration(expires, "--expires"),
    )


def refuse_both(*, as_json: bool, as_sql: bool) -> None:
    """Refuse --json together with --sql."""
    if as_json and as_sql:
        raise click.UsageError("--json and --sql exclude each other")


def echo_sql(text: str) -> None:
    """Print SQL as it is: a pipe must not lose the control characters of a literal, as it would otherwise."""
    click.echo(text, nl=False, color=True)


def echo_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(msgspec.json.format(msgspec.json.encode(document), indent=2).decode())


def echo_problems(problems: Iterable[errors.OutboxdError]) -> None:
    """Say on stderr what was passed over."""
    for problem in problems:
        click.echo(f"passed over: {problem}", err=True)


def ask(question: str) -> None:
    """Go on only after a yes; without anybody to ask it is a usage error."""
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort as exc:
        if isinstance(exc.__context__, EOFError):
            raise errors.UsageError("nobody is there to answer", hint="Add --yes.") from None
        raise
    if not agreed:
        click.echo("nothing was changed", err=True)
        raise click.exceptions.Exit(1)
