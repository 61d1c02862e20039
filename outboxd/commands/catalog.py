"""`outboxd catalog`: what the numbers in the tables mean and who receives what. Needs no database."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from outboxd import display, registry

if TYPE_CHECKING:
    from outboxd.commands import Context
    from outboxd.config import Config
    from outboxd.registry import Registry

Rows = list[dict[str, Any]]

# Titles, and the columns of prose that are folded.
_COLUMNS: dict[str, list[str]] = {
    "scopes": ["value", "name", "tag", "option that switches shards off"],
    "categories": ["value", "name", "scope", "coalesce", "on_error", "max_attempts", "received by"],
    "outboxes": ["name", "table", "silo", "key_type", "on_unhandled", "sharded by"],
    "models": ["table", "outbox", "category", "version", "shard", "object"],
}
_FOLDED = ("option that switches shards off", "received by", "sharded by", "shard")


@click.command(name="catalog")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(context: Context, *, as_json: bool) -> None:
    """List scopes, categories, outboxes, models and receivers, as configured."""
    loaded = context.load()
    built = registry.assemble(loaded.config, loaded.folder)
    document = catalog(loaded.config, built)
    if as_json:
        click.echo(json.dumps(document, indent=2))
    else:
        _show(document)
    if not built.receiver_count:
        display.say("warning: no receiver is registered: no message can be delivered", err=True)
        display.say("hint: Name the modules with your @receiver functions in [receivers] modules.", err=True)


def catalog(config: Config, built: Registry) -> dict[str, Rows]:
    """Return the four lists, numbered ones in order of their numbers, as JSON has them."""
    return {
        "scopes": _scopes(config),
        "categories": _categories(config, built),
        "outboxes": [
            {"name": o.name, "table": o.table, "silo": o.silo, "sharding_columns": o.sharding_columns}
            | {"key_type": o.key_type, "on_unhandled": o.on_unhandled}
            for o in config.outbox
        ],
        "models": [
            {name: getattr(m, name) for name in m.__struct_fields__}
            for m in config.model
        ],
    }  # fmt: skip


def _scopes(config: Config) -> Rows:
    return [
        {
            "name": name,
            "value": scope.value,
            "tag": scope.tag,
            "disabled_shards_option": scope.disabled_shards_option or f"outbox.disabled_shards.{name}",
        }
        for name, scope in sorted(config.scopes.items(), key=lambda item: item[1].value)
    ]


def _categories(config: Config, built: Registry) -> Rows:
    return [
        {"name": name, "value": c.value, "scope": c.scope, "coalesce": c.coalesce, "on_error": c.on_error}
        | {"max_attempts": c.max_attempts, "receivers": [r.name for r in built.categories[c.value].receivers]}
        for name, c in sorted(config.categories.items(), key=lambda item: item[1].value)
    ]


def _show(document: dict[str, Rows]) -> None:
    for kind, rows in document.items():
        display.say(f"{kind} ({len(rows)})")
        if rows:
            cells = [[str(cell) for cell in _cells(kind, row)] for row in rows]
            display.show_table(_COLUMNS[kind], cells, right=("value", "max_attempts", "version"), folds=_FOLDED)
        click.echo()


def _cells(kind: str, row: dict[str, Any]) -> list[Any]:
    if kind == "scopes":
        return [row["value"], row["name"], row["tag"], row["disabled_shards_option"]]
    if kind == "categories":
        coalesce, receivers = "yes" if row["coalesce"] else "no", ", ".join(row["receivers"]) or "nobody"
        return [row["value"], row["name"], row["scope"], coalesce, row["on_error"], row["max_attempts"], receivers]
    if kind == "outboxes":
        columns = ", ".join(row["sharding_columns"])
        return [row["name"], row["table"], row["silo"], row["key_type"], row["on_unhandled"], columns]
    shard = row["shard_identifier"] or row["shard_identifier_sql"]
    version = row["replication_version"]
    return [row["table"], row["outbox"], row["category"], version, shard, row["object_identifier"]]
