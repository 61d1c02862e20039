"""
What the pages of the admin ask the database, by connections of outboxd's own, and its answers as they are shown.

Times are texts in the user's zone, because the server knows some that Python does not; payloads are the server's own
JSON, because Python's would have other digits.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from django.conf import settings
from django.utils import dateformat
from django.utils.dateparse import parse_datetime
from django.utils.timezone import localtime

from outboxd import access, choose, diagnosis, errors, sql, switching
from outboxd.contrib.django import configuration
from outboxd.diagnosis_display import name_of, payload_of
from outboxd.producer.portal import PORTAL
from outboxd.query import as_written, fetch

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.privileges import RoleKind

SHARDS = 25
MESSAGES = 50
PAUSES = switching.ROWS_SHOWN_MAX
BOUNDS = diagnosis.Bounds(object_rows=100_000)
"""Of an outbox, so many messages are searched at once for those of a category, a region or an object."""

_STATEMENTS = {name: sql.without_header(text) for name, text in sql.load("admin.sql").items()}
_TIMES = ("oldest", "newest", "until", "next_attempt", "since", "expires_at", "date_added", "scheduled_for")
_PIECE = re.compile(r'"(?:[^"\\]|\\.)*"|[\[\]{},:]|[^\s"\[\]{},:]+')
_INDENT_MAX = 40

Row = dict[str, Any]
Result = TypeVar("Result")
Question = Callable[["asyncpg.Connection", "Config"], Awaitable[Result]]


@dataclasses.dataclass(frozen=True, slots=True)
class Listed:
    """
    A page of a list of messages.

    Attributes:
        outbox: Its name.
        rows: One message more than a page has, if there is one.
        is_searched: Whether something was looked for that no index knows.
        further: Below this id nothing was looked at yet; None: there is no more.
    """

    outbox: str
    rows: list[Row]
    is_searched: bool
    further: int | None


def ask(alias: str, kind: RoleKind, question: Question[Result]) -> Result:
    """
    Ask the database of an alias.

    Raises:
        OutboxdError, ImproperlyConfigured: What is to be said instead of an answer.
    """
    loaded = configuration.load_of(alias)

    async def asked() -> Result:
        async with access.opened(loaded, kind, name="admin") as connection:
            return await question(connection, loaded.config)

    return PORTAL.run(asked())


async def look(connection: asyncpg.Connection, config: Config) -> dict[str, Any]:
    """Return what is switched off, what is stuck, and the deepest shards."""
    outboxes = config.require_outboxes()
    off = await fetch(connection, switching.switched_off_query(config, rows_max=PAUSES + 1), "reading pauses")
    stuck = await fetch(connection, diagnosis.stuck(config, outboxes, limit=SHARDS), "looking at stuck shards")
    shards = await fetch(connection, diagnosis.shards(config, outboxes, limit=SHARDS), "looking at shards")
    for row in off:
        row["subject"] = switching.subject(row)
    return {
        "outboxes": [{"name": outbox.name} for outbox in outboxes],
        "off": _shown(off[:PAUSES]),
        "off_more": len(off) > PAUSES,
        "stuck": _shown(stuck),
        "shards": _shown(shards),
    }


async def list_messages(connection: asyncpg.Connection, config: Config, given: Mapping[str, Any]) -> Listed:
    """Return the messages that all of this is true of, newest first, without their payloads."""
    if (given["scope"] is None) != (given["shard"] is None):
        raise errors.UsageError("a shard is named by its scope and its identifier")
    outbox = _choose_outbox(config, given["outbox"], given["region"], needs_region=given["shard"] is not None)

    async def identifier(column: str, what: str) -> Any:
        return choose.parse_identifier(given[what], await diagnosis.type_of(connection, outbox, column), what)

    shard = obj = category = None
    if given["shard"] is not None:
        shard = (choose.choose_scope(config, given["scope"]), await identifier("shard_identifier", "shard"))
    if given["object"] is not None:
        obj = await identifier("object_identifier", "object")
    if given["category"] is not None:
        category = choose.choose_category(config, given["category"])
    question = diagnosis.messages(
        config,
        outbox,
        below=given["before"],
        shard=shard,
        region=given["region"],
        category=category,
        object_identifier=obj,
        limit=MESSAGES + 1,
        payload_bytes_max=0,
        bounds=BOUNDS,
    )
    rows = await fetch(connection, question, "looking at messages")
    is_searched = obj is not None or category is not None or (given["region"] is not None and shard is None)
    further = rows[MESSAGES - 1]["id"] if len(rows) > MESSAGES else None
    if is_searched and further is None:
        names = {name: question.names[name] for name in ("table", "led", "backwards")}
        unsearched = dataclasses.replace(question, statement=_STATEMENTS["unsearched"], names=names)
        for row in await fetch(connection, unsearched, "looking for older messages"):
            further = row["id"] + 1
    return Listed(outbox.name, _shown(rows[:MESSAGES]), is_searched, further)


async def find_message(connection: asyncpg.Connection, config: Config, name: str | None, number: int) -> Row:
    """Return one message, with its payload."""
    outbox = _choose_outbox(config, name, None, needs_region=False)
    question = diagnosis.messages(config, outbox, message_id=number, limit=1)
    for row in _shown(await fetch(connection, question, "looking at a message")):
        written = {"payload": payload_of(row), "headers": row["headers"] and as_written(row["headers"])}
        return row | {name: text and indented(text) for name, text in written.items()}
    raise errors.UsageError(f"message {number} is not in outbox {outbox.name}, or not any more")


def _choose_outbox(config: Config, name: str | None, region: str | None, *, needs_region: bool) -> OutboxConfig:
    """Choose the one that is named, or the first."""
    return choose.choose_outbox(config, name or config.require_outboxes()[0].name, region, needs_region=needs_region)


async def pause(connection: asyncpg.Connection, config: Config, given: dict[str, Any], by: switching.By) -> list[Row]:
    """Write the pauses that are asked for, and return them."""
    names = {name: given[name] for name in ("scope", "shard", "region", "category", "outbox")}
    target = switching.choose_target(config, **names)
    if target is None:
        raise errors.UsageError("what is to be paused?")
    targets = await switching.checked(connection, config, target)
    numbers = await switching.add_pauses(connection, config, targets, by)
    return await switching.pauses(connection, config, numbers)


async def find_pause(connection: asyncpg.Connection, config: Config, number: int) -> Row:
    """Return one pause."""
    for row in await switching.pauses(connection, config, [number]):
        return row
    raise errors.UsageError(f"there is no pause {number}, or not any more")


async def resume(connection: asyncpg.Connection, config: Config, number: int, by: switching.By) -> None:
    """End one pause, or lift it for a while."""
    ended = await switching.end_pauses(connection, config, [number], by)
    if not ended:
        raise errors.UsageError(f"pause {number} has been ended by somebody else")


def shard_of(row: Row) -> dict[str, Any]:
    """Name a shard as the forms do."""
    shard = {"scope": row["scope_name"], "shard": row["shard_identifier"], "region": row["region_name"]}
    return {name: value for name, value in shard.items() if value is not None}


def _shown(rows: Iterable[Row]) -> list[Row]:
    """Write times in the user's zone, and give each shard its name."""
    shown = []
    for row in rows:
        times = {name: in_zone(row[name]) for name in _TIMES if row.get(name)}
        shown.append(row | times | ({"name": name_of(row)} if "scope_name" in row else {}))
    return shown


def in_zone(text: str) -> str:
    """Write a time as the server has it in the user's zone; as it is, where Python has no such time: infinity, say."""
    try:
        time = parse_datetime(text)
        if time is None:
            return text
        return dateformat.format(localtime(time) if settings.USE_TZ else time, "Y-m-d H:i:s T")
    except (ValueError, OverflowError):
        return text


def indented(text: str) -> str:
    """Indent JSON that the server has written; no digit of it is changed, and it may be nested as deep as it likes."""
    written: list[str] = []
    depth, last = 0, ""
    for piece in _PIECE.findall(text):
        opens, closes = piece in ("[", "{"), piece in ("]", "}")
        depth -= closes
        if last == "," or (last in ("[", "{")) != closes:
            written.append("\n" + "  " * min(depth, _INDENT_MAX))
        elif last == ":":
            written.append(" ")
        written.append(piece)
        depth += opens
        last = piece
    return "".join(written)
