"""`outboxd doctor`: what keeps the system from delivering, check after check, and a verdict."""

from __future__ import annotations

import asyncio
from typing import TYPE_CHECKING

import click

from outboxd import check, display, doctor
from outboxd.commands import shared

if TYPE_CHECKING:
    from outboxd.commands import Context

LABEL_WIDTH = 9


@click.command(name="doctor")
@click.option("--json", "as_json", is_flag=True, help="One JSON document: verdict, exit code and a list of findings.")
@click.option("--sql", "as_sql", is_flag=True, help="Print the questions for psql instead; needs no connection.")
@click.pass_obj
def command(context: Context, /, *, as_json: bool, as_sql: bool) -> int:
    """
    Find out what keeps the system from delivering.

    Looks at daemons, kill switches, failing receivers, tables, vacuum, connections and lag, and changes nothing. Each
    finding says what to do about it. Exit code 0 without errors, 1 with them; 69 and 78 where it cannot even look.
    """
    shared.refuse_both(as_json=as_json, as_sql=as_sql)
    if as_sql:
        config = context.load().config
        config.require_outboxes()
        shared.echo_sql("\n".join(question.for_psql() for _, _, question in doctor.questions(config)))
        return 0
    report = asyncio.run(doctor.examine(check.prepare(context.load, no_receiver="error")))
    if as_json:
        shared.echo_json(report.as_json())
    else:
        display.show_lines(report.lines(), hang=LABEL_WIDTH)
    return report.exit_code
