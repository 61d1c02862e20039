"""Options and manners that several sub-commands have in common."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

import click
import msgspec

from outboxd import choose, contract, display, errors
from outboxd.switching import ROWS_SHOWN_MAX, By, account

if TYPE_CHECKING:
    from outboxd.acts import Retry
    from outboxd.config import Config, OutboxConfig

Decorated = TypeVar("Decorated", bound=Callable[..., Any])

with_json = click.option("--json", "as_json", is_flag=True, help="One JSON document: a list of objects.")
with_sql = click.option("--sql", "as_sql", is_flag=True, help="Print a query for psql instead; needs no connection.")
with_yes = click.option("--yes", is_flag=True, help="Do not ask.")


def with_outbox(function: Decorated) -> Decorated:
    """Add --outbox and --region, as `outbox` and `region`; `choose.choose_outbox` says what they mean."""
    region = click.option("--region", metavar="NAME", help="Region, for an outbox that shards by region.")
    outbox = click.option("--outbox", metavar="NAME", help="Outbox; needed when more than one fits.")
    return outbox(region(function))


def with_outboxes(function: Decorated) -> Decorated:
    """Add the same for a command that looks at every outbox; `choose.choose_outboxes` says what they mean."""
    region = click.option("--region", metavar="NAME", help="Only this region.")
    outbox = click.option("--outbox", metavar="NAME", help="Only this outbox.")
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


def note_unknown(config: Config, *, scope: int | None = None, category: int | None = None) -> None:
    """Say of a number that it stands for nothing here: it is taken, because rows may bear it."""
    numbers = {
        "scope": (scope, {name: each.value for name, each in config.scopes.items()}),
        "category": (category, {name: each.value for name, each in config.categories.items()}),
    }
    for kind, (number, known) in numbers.items():
        if number is not None and number not in known.values():
            listed = ", ".join(f"{name} = {value}" for name, value in known.items()) or "none"
            display.show_lines([f"note: the configuration has no {kind} {number} (it has: {listed})"], err=True)


def note_type(outbox: OutboxConfig, identifier: str, what: str) -> None:
    """
    Say of an identifier in a query that is only printed that psql may refuse it: the table is not asked for its types.

    Raises:
        InvalidOutboxError: It is not even a text.
    """
    choose.parse_text(identifier, what)
    try:
        choose.parse_identifier(identifier, outbox.key_type, what)
    except errors.InvalidOutboxError as exc:
        where = f"by the key_type of outbox {outbox.name}; a table of another type may take it"
        display.show_lines([f"note: {exc}, {where}"], err=True)


def note_elsewhere(config: Config, looked_at: OutboxConfig, outbox: str | None, region: str | None) -> None:
    """Say where nobody has looked, when nothing was found in an outbox that was not named."""
    others = [each.name for each in config.outboxes if each.name != looked_at.name and contract.has_region(each)]
    if outbox is None and region is None and others:
        have = "has" if len(others) == 1 else "have"
        where = f"outbox {', '.join(others)} {have} regions: look there with --region NAME"
        display.show_lines([f"note: only outbox {looked_at.name} was looked at; {where}"], err=True)


def note_cut(shown: Sequence[object]) -> None:
    """Say of what is set or switched off that it may be more than is shown, in a table or a document."""
    if len(shown) == ROWS_SHOWN_MAX:
        display.say(f"note: only the first {ROWS_SHOWN_MAX:,} are shown", err=True)


def note_limit(shown: Sequence[object], limit: int, which: str) -> None:
    """Say of a list that is full, table or document, that it may go on; *which* it shows: the `newest`, say."""
    if len(shown) == limit:
        display.say(f"the {which} {limit}: there may be more (--limit)", err=True)


def made_due(retry: Retry) -> str:
    """Say what `retry` and `resume --now` have done."""
    if not retry.messages:
        return f"nothing was waiting in {display.counted(retry.seen, 'shard')}"
    return f"made due: {display.counted(retry.messages, 'message')} in {display.counted(retry.shards, 'shard')}"


def refuse_both(*, as_json: bool, as_sql: bool) -> None:
    """Refuse --json together with --sql."""
    if as_json and as_sql:
        raise click.UsageError("--json and --sql exclude each other")


def echo_sql(text: str) -> None:
    """Print SQL as it is: a pipe must not lose the control characters of a literal, as it would otherwise."""
    click.echo(text, nl=False, color=True)


def echo_json(document: Any) -> None:
    """Print one JSON document."""
    click.echo(indented(msgspec.json.encode(document).decode()))


def indented(text: str) -> str:
    """Indent JSON; what is nested too deeply for that is left as it is."""
    try:
        return msgspec.json.format(text, indent=2)
    except RecursionError:
        return text


def echo_problems(problems: Iterable[errors.OutboxdError]) -> None:
    """Say on stderr what was passed over."""
    for problem in problems:
        display.say(f"passed over: {problem}", err=True)


def ask(question: str) -> None:
    """Go on only after a yes; without anybody to ask it is a usage error."""
    try:
        agreed = click.confirm(display.fitting(f"{question} [y/N]", err=True), err=True, show_default=False)
    except click.Abort as exc:
        if isinstance(exc.__context__, EOFError):
            raise errors.UsageError("nobody is there to answer", hint="Add --yes.") from None
        raise
    if not agreed:
        display.say("nothing was changed", err=True)
        raise click.exceptions.Exit(1)
