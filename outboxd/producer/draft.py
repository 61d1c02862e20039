"""What an application wants to say: one message, checked before anything is written."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import re
import uuid
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

from outboxd import contract, errors, suggest

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table

_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64}
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_AS_TEXT = (uuid.UUID, dt.datetime, dt.date, dt.time, decimal.Decimal)


@dataclass(frozen=True, slots=True, kw_only=True)
class NewMessage:
    """
    A message that is to be written.

    Attributes:
        category: Name of a configured category; its scope is the shard's.
        shard_identifier: Of the type of the outbox's column: an int, a `uuid.UUID` (or its text), or a str.
        object_identifier: Likewise.
        payload: What JSON can hold; UUIDs, dates, times and decimals become texts. None: no payload.
        region_name: Where the outbox shards by region.
        headers: A mapping that JSON can hold; the table must have the column.
        outbox: Name of an outbox, where several would fit.
    """

    category: str
    shard_identifier: Any
    object_identifier: Any
    payload: Any = None
    region_name: str | None = None
    headers: Mapping[str, Any] | None = None
    outbox: str | None = None


class Route(NamedTuple):
    """Where the messages of a category go: the outbox, and the numbers of category and scope."""

    outbox: OutboxConfig
    category: int
    scope: int


def find_route(config: Config, message: NewMessage) -> Route:
    """
    Tell where a message goes.

    Without a name, to the one outbox of the silo mode that shards by region exactly when the message has one.

    Raises:
        InvalidOutboxError: Unknown category or outbox, a region that is missing or too much, or not exactly one outbox.
    """
    category = config.categories.get(message.category)
    if category is None:
        nearest = suggest.nearest(str(message.category), config.categories)
        raise errors.InvalidOutboxError(f"there is no category {message.category}{nearest}")
    return Route(_find_outbox(config, message), category.value, config.scopes[category.scope].value)


def _find_outbox(config: Config, message: NewMessage) -> OutboxConfig:
    outboxes = config.require_outboxes()
    has_region = message.region_name is not None
    if message.outbox is not None:
        found = next((each for each in outboxes if each.name == message.outbox), None)
        if found is None:
            nearest = suggest.nearest(message.outbox, [each.name for each in outboxes])
            raise errors.InvalidOutboxError(f"there is no outbox {message.outbox}{nearest}")
        if contract.has_region(found) != has_region:
            need = "takes no region_name" if has_region else "needs a region_name"
            raise errors.InvalidOutboxError(f"{message.category}: outbox {found.name} {need}")
        return found
    fitting = [each for each in outboxes if contract.has_region(each) == has_region]
    if len(fitting) == 1:
        return fitting[0]
    given = "a region_name" if has_region else "no region_name"
    names = ", ".join(each.name for each in fitting or outboxes)
    fit = "several outboxes fit, name one" if fitting else "no outbox is like that"
    raise errors.InvalidOutboxError(f"{message.category} with {given}: {fit}: {names}")


def row_of(message: NewMessage, route: Route, table: Table) -> tuple[Any, ...]:
    """
    Return the values to write: category, object, payload and headers as JSON text, then the shard's columns.

    Raises:
        InvalidOutboxError: A value is not what its column takes; says which.
    """
    what = message.category
    if message.headers is not None and not table.has_headers:
        raise errors.InvalidOutboxError(f"{what}: outbox {route.outbox.name} has no column headers")
    shard = _shard(message, route, table.shard_columns)
    return (
        route.category,
        _identifier(message.object_identifier, table.object_type, f"{what}: object_identifier"),
        None if message.payload is None else _json(message.payload, f"{what}: payload"),
        None if message.headers is None else _headers(message.headers, f"{what}: headers"),
        *shard,
    )


def _shard(message: NewMessage, route: Route, types: Mapping[str, str]) -> list[Any]:
    values: list[Any] = []
    for column, type_ in types.items():
        if column == "shard_identifier":
            values.append(_identifier(message.shard_identifier, type_, f"{message.category}: shard_identifier"))
        elif column == "shard_scope":
            values.append(route.scope)
        else:
            values.append(_text(message.region_name, f"{message.category}: region_name"))
    return values


def _identifier(value: Any, type_: str, what: str) -> Any:
    bits = _INTEGER_BITS.get(type_)
    if bits is not None:
        if not isinstance(value, int) or isinstance(value, bool):
            raise errors.InvalidOutboxError(f"{what}: {value!r} is no int, and the column is {type_}")
        if not -(2 ** (bits - 1)) <= value < 2 ** (bits - 1):
            raise errors.InvalidOutboxError(f"{what}: {value} is beyond {type_}")
        return value
    return _uuid(value, what) if type_ == "uuid" else _text(value, what)


def _uuid(value: Any, what: str) -> uuid.UUID:
    if isinstance(value, uuid.UUID):
        return value
    try:
        return uuid.UUID(value)
    except (ValueError, TypeError, AttributeError) as exc:
        raise errors.InvalidOutboxError(f"{what}: {value!r} is no uuid") from exc


def _text(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise errors.InvalidOutboxError(f"{what}: {value!r} is no str")
    if not value and what.endswith("region_name"):
        raise errors.InvalidOutboxError(f"{what}: is empty")
    return _storable(value, what)


def _storable(text: str, what: str) -> str:
    if "\0" in text:
        raise errors.InvalidOutboxError(f"{what}: PostgreSQL takes no NUL")
    try:
        text.encode()
    except UnicodeEncodeError as exc:
        raise errors.InvalidOutboxError(f"{what}: {exc}") from exc
    return text


def _headers(value: Any, what: str) -> str:
    if not isinstance(value, dict):
        raise errors.InvalidOutboxError(f"{what}: {type(value).__name__} is no dict")
    return _json(value, what)


def _json(value: Any, what: str) -> str:
    """Write JSON that jsonb takes: what the server refused would end the application's transaction."""
    try:
        text = json.dumps(value, allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain)
    except (TypeError, ValueError, RecursionError) as exc:
        raise errors.InvalidOutboxError(f"{what}: {exc}") from exc
    if _NUL.search(text):
        raise errors.InvalidOutboxError(f"{what}: PostgreSQL takes no NUL")
    return _storable(text, what)


def _plain(value: Any) -> str:
    if isinstance(value, _AS_TEXT):
        return value.isoformat() if isinstance(value, (dt.date, dt.time)) else str(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")


def columns_of(rows: Sequence[tuple[Any, ...]]) -> list[list[Any]]:
    """Turn rows into an array a column, as the statement takes them."""
    return [list(column) for column in zip(*rows, strict=True)]
