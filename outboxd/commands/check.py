"""`outboxd check`: everything that the daemon needs, looked at without changing it."""

from __future__ import annotations

import asyncio
import json
from typing import TYPE_CHECKING

import click

from outboxd import check, display, findings

if TYPE_CHECKING:
    from outboxd.commands import Context
    from outboxd.privileges import RoleKind


@click.command(name="check")
@click.option("--json", "as_json", is_flag=True, help="One JSON document: a list of findings.")
@click.option(
    "--role",
    "kinds",
    multiple=True,
    type=click.Choice(["owner", "daemon", "producer", "operator", "reader"]),
    help="What the role must be able to do: migrate, run the daemon, write messages, pause and retry, only look. "
    "Default: daemon.",
)
@click.option("--as", "role", metavar="NAME", help="The role to look at. Default: the one that connects.")
@click.pass_obj
def command(context: Context, /, *, as_json: bool, kinds: tuple[RoleKind, ...], role: str | None) -> int:
    """
    Check configuration, receivers, database, tables and privileges; change nothing.

    Every finding says what to do about it. Exit code 0 without errors, 78 when configuration, schema or a
    privilege is wrong, 69 when the database cannot be reached.

    There is no --sql: these are many questions to the catalog, most of which follow from earlier answers.
    """
    found = asyncio.run(check.check(check.prepare(context.load), list(kinds), role))
    if as_json:
        click.echo(json.dumps([finding.as_json() for finding in found], indent=2))
    else:
        display.say("\n".join(findings.lines(found)))
    return findings.exit_code(found)
