"""`outboxd catalog`: what the numbers in the tables mean and who receives what. Needs no database."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from outboxd import registry
from outboxd.display import aligned

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outboxd.commands import Context
    from outboxd.config import Config
    from outboxd.registry import Registry

Rows = list[dict[str, Any]]

_TITLES = {
    "scopes": ("value", "name", "tag"),
    "categories": ("value", "name", "scope", "coalesce", "on_error", "max_attempts"),
    "outboxes": ("name", "table", "silo", "key_type", "on_unhandled"),
    "models": ("table", "outbox", "category", "replication_version"),
}


@click.command(name="catalog")
@click.option("--json", "as_json", is_flag=True, help="One JSON document.")
@click.pass_obj
def command(context: Context, *, as_json: bool) -> None:
    """List scopes, categories, outboxes, models and receivers, as configured."""
    loaded = context.load()
    built = registry.assemble(loaded.config, loaded.folder)
    document = catalog(loaded.config, built)
    click.echo(json.dumps(document, indent=2) if as_json else "\n".join(_text(document)))
    if not built.receiver_count:
        click.echo("warning: no receiver is registered: no message can be delivered", err=True)
        click.echo("hint: Name the modules with your @receiver functions in [receivers] modules.", err=True)


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


def _text(document: dict[str, Rows]) -> Iterator[str]:
    for kind, titles in _TITLES.items():
        rows = document[kind]
        cells = ([_cell(row[title]) for title in titles] for row in rows)
        header, *lines = aligned([titles, *cells], indent="  ")
        yield f"{kind} ({len(rows)})"
        if rows:
            yield header
        for line, row in zip(lines, rows, strict=True):
            yield line
            yield from (f"      {detail}" for detail in _details(kind, row))
        yield ""


def _details(kind: str, row: dict[str, Any]) -> list[str]:
    """Return what would make a table too wide; a line each, under the row."""
    if kind == "scopes":
        return [f"can be switched off by option {row['disabled_shards_option']}"]
    if kind == "categories":
        return [f"received by {name}" for name in row["receivers"]] or ["received by nobody"]
    if kind == "outboxes":
        return [f"sharded by {', '.join(row['sharding_columns'])}"]
    shard = row["shard_identifier"] or row["shard_identifier_sql"]
    return [f"shard {shard}, object {row['object_identifier']}"]


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return str(value)
