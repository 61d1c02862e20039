"""What must hold between keys of the configuration: each check returns problems, one line each."""

from __future__ import annotations

import re
from itertools import chain
from typing import TYPE_CHECKING

from outboxd import dsn, errors, sql, suggest

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from outboxd.config import Config, ModelConfig, OutboxConfig

_SHARDING = ("region_name", "shard_scope", "shard_identifier")
_REQUIRED = _SHARDING[1:]
_REDIS_SCHEMES = ("redis://", "rediss://", "unix://")
_LISTEN = re.compile(r"(?:\[[0-9a-fA-F:.%]+\]|[^\s:\[\]/]*):(\d{1,5})")


def problems(config: Config) -> list[str]:
    """
    Return everything that is wrong between keys, in the order of the file.

    Values that are None were broken themselves and have been reported: they are passed over.
    """
    return list(
        chain(
            _connections(config),
            _names(config),
            _outboxes(config),
            _scopes_and_categories(config),
            _models(config),
        )
    )


def _connections(config: Config) -> Iterator[str]:
    for key in ("dsn", "session_dsn"):
        try:
            dsn.parameters(getattr(config, key), key=key)
        except errors.ConfigError as exc:
            yield from exc.problems
    if config.redis_url and not config.redis_url.startswith(_REDIS_SCHEMES):
        yield f"redis_url must begin with one of {', '.join(_REDIS_SCHEMES)}"
    if config.backfill.state == "redis" and not config.redis_url:
        yield 'backfill.state is "redis", but redis_url is empty (OUTBOX_REDIS_URL)'
    listen = _LISTEN.fullmatch(config.http.listen)
    if config.http.listen and (listen is None or int(listen[1]) > 65_535):
        yield f'http.listen must be "address:port", ":port" or "", got {config.http.listen!r}'


def _names(config: Config) -> Iterator[str]:
    if not sql.is_identifier(config.schema) or config.schema.startswith("pg_"):
        yield f"schema cannot be the name of a schema: {config.schema!r}"
    for kind, names in (("scopes", config.scopes), ("categories", config.categories)):
        for name in names:
            if not name.isprintable() or not 0 < len(name) <= 200:
                yield f"{kind}: a name must be 1 to 200 printable characters, got {name!r}"
    for module in config.receivers.modules:
        if not all(part.isidentifier() for part in module.split(".")):
            yield f"receivers.modules: {module!r} is not a module's name, such as shop.receivers"


def _outboxes(config: Config) -> Iterator[str]:
    yield from _twice("outbox: the name", (o.name for o in config.outbox))
    yield from _twice("outbox: the table", (o.table for o in config.outbox))
    for i, outbox in enumerate(config.outbox):
        at = f'outbox "{outbox.name}"' if outbox.name else f"outbox[{i}]"
        if outbox.name is not None and not outbox.name.isprintable():
            yield f"{at}: name must be printable, got {outbox.name!r}"
        yield from _table_problems(at, outbox.table)
        yield from _sharding(at, outbox)


def _sharding(at: str, outbox: OutboxConfig) -> Iterator[str]:
    columns = outbox.sharding_columns
    for column in dict.fromkeys(columns):
        if column not in _SHARDING:
            yield f"{at}: sharding_columns: unknown column {column}{suggest.nearest(column, _SHARDING)}"
        if columns.count(column) > 1:
            yield f"{at}: sharding_columns: {column} stands there twice"
    for column in _REQUIRED:
        if column not in columns:
            yield f"{at}: sharding_columns lacks {column}"


def _scopes_and_categories(config: Config) -> Iterator[str]:
    yield from _same_value("scopes", {name: s.value for name, s in config.scopes.items()})
    yield from _same_value("categories", {name: c.value for name, c in config.categories.items()})
    for name, category in config.categories.items():
        if category.scope is not None and category.scope not in config.scopes:
            near = suggest.nearest(category.scope, config.scopes)
            yield f"categories.{name}.scope: unknown scope {category.scope}{near}"


def _models(config: Config) -> Iterator[str]:
    # A watermark belongs to a table: two walks of one table would share it.
    walked = (m.table for m in config.model if m.replication_version)
    yield from _twice("model: the backfilled table", walked)
    yield from _twice("model: the captured table", (m.table for m in config.model if m.capture))
    outboxes = {o.name: o for o in config.outbox if o.name}
    for i, model in enumerate(config.model):
        at = f'model "{model.table}"' if model.table else f"model[{i}]"
        yield from _table_problems(at, model.table)
        if model.outbox is not None and model.outbox not in outboxes:
            yield f"{at}: outbox: unknown outbox {model.outbox}{suggest.nearest(model.outbox, outboxes)}"
        if model.category is not None and model.category not in config.categories:
            near = suggest.nearest(model.category, config.categories)
            yield f"{at}: category: unknown category {model.category}{near}"
        yield from _model_columns(at, model)
        yield from _model_regions(at, model, outboxes.get(model.outbox))


def _model_columns(at: str, model: ModelConfig) -> Iterator[str]:
    if bool(model.shard_identifier) == bool(model.shard_identifier_sql.strip()):
        yield f"{at}: needs exactly one of shard_identifier and shard_identifier_sql"
    for key in ("shard_identifier", "object_identifier"):
        column = getattr(model, key)
        if not sql.is_identifier(column) and (column or key == "object_identifier"):
            yield f"{at}: {key} cannot be the name of a column: {column!r}"
    for column in model.capture_columns:
        if not sql.is_identifier(column):
            yield f"{at}: capture_columns: {column!r} cannot be the name of a column"
    if not model.capture and (model.capture_columns or model.capture_delete_payload_sql):
        yield f"{at}: capture_columns and capture_delete_payload_sql are for capture = true"
    for key in ("shard_identifier_sql", "payload_sql", "where_sql", "region_names_sql", "capture_delete_payload_sql"):
        if "\0" in getattr(model, key):
            yield f"{at}: {key} holds a NUL character"


def _model_regions(at: str, model: ModelConfig, outbox: OutboxConfig | None) -> Iterator[str]:
    """Ask for regions where the outbox shards by them, and refuse them elsewhere."""
    given = [key for key in ("region_names", "region_names_sql") if getattr(model, key)]
    if len(given) > 1:
        yield f"{at}: region_names and region_names_sql are both given, keep one"
    if outbox is None:
        return
    if given and "region_name" not in outbox.sharding_columns:
        yield f"{at}: {given[0]}: outbox {outbox.name} has no region_name among its sharding_columns"
    if not given and (model.replication_version or model.capture) and "region_name" in outbox.sharding_columns:
        yield f"{at}: needs region_names or region_names_sql, because outbox {outbox.name} shards by region"
    for name in model.region_names:
        if not name or "\0" in name:
            yield f"{at}: region_names: {name!r} cannot be the name of a region"
    if len(set(model.region_names)) < len(model.region_names):
        yield f"{at}: region_names: a region stands there twice"


def _table_problems(at: str, table: str | None) -> Iterator[str]:
    """Refuse what is neither `table` nor `schema.table`."""
    if table is None:
        return
    parts = table.split(".")
    if len(parts) > 2:
        yield f"{at}: table must be table or schema.table, got {table!r}"
    elif not all(sql.is_identifier(part) for part in parts):
        yield f"{at}: table cannot be the name of a table (1 to 63 bytes, no NUL): {table!r}"


def _twice(what: str, values: Iterable[str | None]) -> Iterator[str]:
    seen: set[str] = set()
    told: set[str] = set()
    for value in values:
        if value is not None and value in seen and value not in told:
            told.add(value)
            yield f"{what} {value} is used twice"
        elif value is not None:
            seen.add(value)


def _same_value(kind: str, values: dict[str, int]) -> Iterator[str]:
    first: dict[int, str] = {}
    for name, value in values.items():
        if value is not None and value in first:
            yield f"{kind}.{name}.value: {value} is already the value of {first[value]}"
        elif value is not None:
            first[value] = name
