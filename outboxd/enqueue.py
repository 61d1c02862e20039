"""`outboxd enqueue`: write one message by the rules of the configuration."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outboxd import errors, inspection, registry, sql
from outboxd.choose import choose_outbox, choose_scope, parse_identifier, parse_text

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table

_STATEMENTS = sql.load("enqueue.sql")

PAYLOAD_TIMEOUT_S = 600.0
NOT_NULL_VIOLATION = "23502"


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """
    A message as given on the command line.

    Attributes:
        shard: Shard identifier, as text.
        object: Object identifier, as text.
        payload: JSON text.
        headers: JSON text of an object.
        scope: The scope that the caller believes the category is of; None: whichever it is.
    """

    category: str
    shard: str
    object: str
    payload: str | None = None
    headers: str | None = None
    region: str | None = None
    outbox: str | None = None
    scope: str | None = None


async def enqueue(connection: asyncpg.Connection, config: Config, new: NewMessage) -> tuple[str, int]:
    """
    Write a message in a transaction of its own.

    Returns:
        The outbox's name and the row's id.

    Raises:
        UsageError: Unknown category or outbox, or not exactly one outbox fits.
        InvalidOutboxError: The message breaks a rule: scope, region, identifier or JSON.
        SchemaError: The table is not as it must be, or may not be written.
        StoreUnavailable: The connection is gone; nothing was written, unless it was lost at the very end.
    """
    category = find_category(config, new.category, new.scope)
    outbox = choose_outbox(config, new.outbox, new.region)
    with inspection.translated(f"writing to outbox {outbox.name}"):
        async with connection.transaction():  # behind a pooler, the statements must reach one server process
            return outbox.name, await _write(connection, config, new, category, outbox)


async def _write(
    connection: asyncpg.Connection, config: Config, new: NewMessage, category: registry.Category, outbox: OutboxConfig
) -> int:
    table = await inspection.inspect_table(connection, outbox)
    headers = _checked_headers(new.headers, table, outbox.name)
    arguments = [
        category.value,
        parse_identifier(new.object, table.object_type, "--object"),
        new.payload,
        *([headers] if table.has_headers else []),
        *_shard(new, table, config.scopes[category.scope].value),
    ]
    statement = _STATEMENTS["enqueue_with_headers" if table.has_headers else "enqueue"]
    return await _insert(connection, _render(statement, table), arguments, outbox.name)


def find_category(config: Config, text: str, scope: str | None) -> registry.Category:
    """
    Find a category by its name or number, and refuse one that is not of the scope that was named.

    Raises:
        UsageError: No such category or scope; names the nearest.
        InvalidOutboxError: The category belongs to another scope.
    """
    names = {str(category.value): name for name, category in config.categories.items()}
    category = registry.build(config, []).category(text if text in config.categories else names.get(text, text))
    if scope is not None and choose_scope(config, scope) != config.scopes[category.scope].value:
        raise errors.InvalidOutboxError(f"category {category.name} belongs to {category.scope}, not to {scope}")
    return category


def _checked_headers(text: str | None, table: Table, outbox: str) -> str | None:
    if text is None:
        return None
    if not table.has_headers:
        raise errors.InvalidOutboxError(f"outbox {outbox} has no column headers: --headers does not apply")
    if not isinstance(json.loads(text), dict):
        raise errors.InvalidOutboxError("--headers must be a JSON object")
    return text


def _shard(new: NewMessage, table: Table, scope_value: int) -> list[Any]:
    values: dict[str, Any] = {"shard_scope": scope_value, "region_name": None}
    if new.region is not None:
        values["region_name"] = parse_text(new.region, "--region")
    values["shard_identifier"] = parse_identifier(new.shard, table.shard_columns["shard_identifier"], "--shard")
    return [values[column] for column in table.shard_columns]


def _render(statement: str, table: Table) -> str:
    names = {"table": table.name, "object_type": table.object_type}
    return sql.Renderer(names, table.shard_columns).render(statement)


async def _insert(connection: asyncpg.Connection, statement: str, arguments: list[Any], outbox: str) -> int:
    try:
        with inspection.translated(f"writing to outbox {outbox}"):
            async with connection.transaction():
                number: int = await connection.fetchval(statement, *arguments, timeout=PAYLOAD_TIMEOUT_S)
    except errors.StatementFailed as exc:
        # 22: a value that its type refuses. 23: a constraint of the table.
        if (
            exc.sqlstate == NOT_NULL_VIOLATION
        ):  # ours are all given, so it is a column that outboxd does not know, or the id
            raise errors.SchemaError(str(exc), hint="Give the column a default, or allow null in it.") from exc
        if exc.sqlstate[:2] in ("22", "23"):
            raise errors.InvalidOutboxError(str(exc)) from exc
        raise
    return number
