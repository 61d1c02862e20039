"""`outboxd init`: a small commented configuration, and a receiver module beside it."""

from __future__ import annotations

import shlex
from pathlib import Path

import click

from outboxd import errors

RECEIVERS = "outbox_receivers"

CONFIGURATION = f"""\
# outboxd: what to drain, and what the numbers in the table mean.
# Every other key, with its default and what it does: docs/configuration.md.

# The database is best named in the environment, OUTBOX_DSN, where its password does not lie in a file
# that is checked in. Without it libpq's own variables apply (PGHOST, PGUSER, PGDATABASE ...).
# dsn = "postgresql://app@localhost/app"

[receivers]
# Python modules with @receiver functions; this folder is searched first.
modules = ["{RECEIVERS}"]

# The table that the application writes its messages to. `outboxd migrate` creates or completes it.
[[outbox]]
name = "main"
table = "outbox"

# What messages are sharded by. Messages of one account are delivered one after another, different
# accounts in parallel. The number stands in the column shard_scope: never change or reuse it.
[scopes.ACCOUNT]
value = 1
tag = "account_id"

# A kind of change. Its number stands in the column category.
[categories.ACCOUNT_UPDATE]
value = 1
scope = "ACCOUNT"
# Messages about the same object that wait together become one delivery, of the newest.
coalesce = true

# Write messages for the rows that an existing table has already (a backfill), at a bounded rate:
#
# [[model]]
# table = "account"
# outbox = "main"
# category = "ACCOUNT_UPDATE"
# shard_identifier = "id"
"""

MODULE = '''\
"""Receivers: what happens when a message is delivered."""

import sys

from outboxd import Message, receiver


@receiver("ACCOUNT_UPDATE")
async def on_account_update(message: Message) -> None:
    """
    Accept one message.

    Returning accepts it, and its rows leave the outbox. Raising keeps it and has it tried again later.
    It may be delivered more than once: make it harmless to do the same thing twice.
    """
    print(f"account {message.object_identifier} changed: {message.payload}", file=sys.stderr)
'''


@click.command(name="init")
@click.argument("path", type=click.Path(path_type=Path), default=Path("outboxd.toml"))
@click.option("--force", is_flag=True, help="Overwrite what is there.")
def command(path: Path, *, force: bool) -> None:
    """Write a small commented configuration to PATH (outboxd.toml) and a receiver module beside it."""
    config = path / "outboxd.toml" if path.is_dir() else path
    module = config.parent / f"{RECEIVERS}.py"
    _refuse(config, module, force=force)
    for file, text in ((config, CONFIGURATION), (module, MODULE)):
        _write(file, text, force=force)
        click.echo(f"wrote {file}")
    click.echo(_next_steps(config))


def _refuse(config: Path, module: Path, *, force: bool) -> None:
    """Check before the first byte is written, so that nothing is left half done."""
    if not config.parent.is_dir():
        raise errors.UsageError(f"there is no folder {config.parent}")
    present = [str(file) for file in (config, module) if file.exists() or file.is_symlink()]
    if present and not force:
        raise errors.UsageError(
            f"{' and '.join(present)} already there", hint="Choose another path, or overwrite with --force."
        )


def _write(file: Path, text: str, *, force: bool) -> None:
    """Write one file; mode `x` keeps one that appeared meanwhile."""
    try:
        with file.open("w" if force else "x", encoding="utf-8") as stream:
            stream.write(text)
    except OSError as exc:
        raise errors.UsageError(f"cannot write {file}: {exc.strerror}") from exc


def _next_steps(config: Path) -> str:
    here = config.resolve() == Path("outboxd.toml").resolve()
    program = "outboxd" if here else f"outboxd --config {shlex.quote(str(config))}"
    return f"""
Next:
  export OUTBOX_DSN=postgresql://USER:PASSWORD@HOST/DATABASE
  {program} migrate        # creates the table
  {program} enqueue ACCOUNT_UPDATE --shard 1 --object 1
  {program} --once         # delivers it; without --once: keeps running
"""
