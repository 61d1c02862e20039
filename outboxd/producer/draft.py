"""What an application wants to say: one message, checked before anything is written."""

from __future__ import annotations

import datetime as dt
import decimal
import json
import re
import uuid
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

import msgspec

from outboxd import contract, errors, suggest, tracing

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from outboxd.config import Config, OutboxConfig
    from outboxd.inspection import Table

_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64}
_NUL = re.compile(r"(?<!\\)(?:\\\\)*\\u0000")
_AS_TEXT = (uuid.UUID, dt.datetime, dt.date, dt.time, decimal.Decimal)


class NewMessage(msgspec.Struct, frozen=True, kw_only=True):
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


Converter = Callable[[Any, NewMessage], Any]
"""Takes a value, and the message it is of for the words of an error; returns what the driver takes."""


def columns_of(messages: Sequence[NewMessage], routes: Sequence[Route], table: Table) -> list[list[Any]]:
    """
    Lay messages for one outbox out as the statement takes them, an array a column.

    Returns:
        Category, object, payload and headers as JSON text, then the sharding columns in the table's order.

    Raises:
        InvalidOutboxError: A value is not what its column takes; says which.
    """
    convert_shard = _converter(table.shard_columns["shard_identifier"], "shard_identifier")
    convert_object = _converter(table.object_type, "object_identifier")
    shards: dict[str, list[Any]] = {
        "shard_scope": [route.scope for route in routes],
        "shard_identifier": [convert_shard(message.shard_identifier, message) for message in messages],
    }
    if "region_name" in table.shard_columns:
        shards["region_name"] = [_region(message) for message in messages]
    if not table.has_headers:
        for message, route in zip(messages, routes, strict=True):
            if message.headers is not None:
                where = f"outbox {route.outbox.name} has no column headers"
                raise errors.InvalidOutboxError(f"{message.category}: {where}")
    trace = tracing.headers() if table.has_headers else {}
    return [
        [route.category for route in routes],
        [convert_object(message.object_identifier, message) for message in messages],
        [None if message.payload is None else _json(message.payload, message, "payload") for message in messages],
        _headers(messages, trace),
        *(shards[column] for column in table.shard_columns),
    ]


def _converter(type_: str, what: str) -> Converter:
    """Return what checks an identifier for a column of this type; quick where it is right, as it nearly always is."""
    bits = _INTEGER_BITS.get(type_)
    if bits is not None:
        low, high = -(2 ** (bits - 1)), 2 ** (bits - 1) - 1

        def integer(value: Any, message: NewMessage) -> int:
            if type(value) is int and low <= value <= high:
                return value
            return _integer(value, low, high, type_, f"{message.category}: {what}")

        return integer
    check = _uuid if type_ == "uuid" else _text
    return lambda value, message: check(value, f"{message.category}: {what}")


def _integer(value: Any, low: int, high: int, type_: str, what: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool):
        raise errors.InvalidOutboxError(f"{what}: {value!r} is no int, and the column is {type_}")
    if not low <= value <= high:
        raise errors.InvalidOutboxError(f"{what}: {value} is beyond {type_}")
    return int(value)


def _region(message: NewMessage) -> str:
    what = f"{message.category}: region_name"
    if message.region_name == "":
        raise errors.InvalidOutboxError(f"{what}: is empty")
    return _text(message.region_name, what)


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
    if "\0" in value:
        raise errors.InvalidOutboxError(f"{what}: PostgreSQL takes no NUL")
    return _encodable(value, what)


def _encodable(text: str, what: str) -> str:
    if not text.isascii():
        try:
            text.encode()
        except UnicodeEncodeError as exc:
            raise errors.InvalidOutboxError(f"{what}: {exc}") from exc
    return text


def _headers(messages: Sequence[NewMessage], trace: Mapping[str, str]) -> list[str | None]:
    """Write the headers as JSON text; those of the trace give way to the message's own."""
    none = json.dumps(trace) if trace else None
    texts = []
    for message in messages:
        headers = message.headers
        if headers is not None and not isinstance(headers, dict):
            raise errors.InvalidOutboxError(f"{message.category}: headers: {type(headers).__name__} is no dict")
        texts.append(none if headers is None else _json({**trace, **headers}, message, "headers"))
    return texts


def _json(value: Any, message: NewMessage, what: str) -> str:
    """Write JSON that jsonb takes: what the server refused would end the application's transaction."""
    try:
        text = _ENCODER.encode(value)
    except (TypeError, ValueError, RecursionError) as exc:
        raise errors.InvalidOutboxError(f"{message.category}: {what}: {exc}") from exc
    if "\\u0000" in text and _NUL.search(text):
        raise errors.InvalidOutboxError(f"{message.category}: {what}: PostgreSQL takes no NUL")
    return text if text.isascii() else _encodable(text, f"{message.category}: {what}")


def _plain(value: Any) -> str:
    if isinstance(value, _AS_TEXT):
        return value.isoformat() if isinstance(value, (dt.date, dt.time)) else str(value)
    raise TypeError(f"{type(value).__name__} is nothing that JSON can hold")


_ENCODER = json.JSONEncoder(allow_nan=False, ensure_ascii=False, separators=(",", ":"), default=_plain)
