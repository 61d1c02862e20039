"""
What is switched off, by whom and why; and how people pause and resume. `setting` has the options.

The daemon reads the same rows through `options`. A row whose `created_at` (of an option: `updated_at`) lies ahead was
lifted for a while, and counts again from then on.
"""

from __future__ import annotations

import dataclasses
import os
import pwd
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from outboxd import acts, choose, contract, errors, inspection, option_keys, sql, suggest
from outboxd.option_keys import canonical
from outboxd.options import about
from outboxd.query import Query, Value, fetch, numbers_of

if TYPE_CHECKING:
    import datetime as dt

    import asyncpg

    from outboxd.acts import Stuck
    from outboxd.config import Config

ROWS_SHOWN_MAX = 1_000
ROWS_READ_MAX = 1_000_000

_STATEMENTS = {name: sql.without_header(text) for name, text in sql.load("switching.sql").items()}

Kind = Literal["shard", "category", "outbox", "backfill"]
Row = Mapping[str, Any]
"""One row of a question's answer; here of `switched_off_query`."""


@dataclass(frozen=True, slots=True)
class By:
    """Who does something, why, and for how long (None: until it is undone)."""

    author: str
    reason: str | None = None
    expires: dt.timedelta | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What one pause covers: the columns of `outboxd.pause`; None where a kind does not use one, or means them all."""

    kind: Kind
    shard_scope: int | None = None
    shard_identifier: str | None = None
    region_name: str | None = None
    category: int | None = None
    outbox: str | None = None
    table_name: str | None = None

    def overlaps(self, row: Row) -> bool:
        """Whether a pause or an option's entry has something in common with it."""
        region, table = row["region_name"], row["table_name"]
        return (
            self._is_about(row)
            and (None in (region, self.region_name) or region == self.region_name)
            and (None in (table, self.table_name) or table == self.table_name)
        )

    def contains(self, row: Row) -> bool:
        """Whether a pause lies within it."""
        return (
            self._is_about(row)
            and self.region_name in (None, row["region_name"])
            and self.table_name in (None, row["table_name"])
        )

    def covers(self, stuck: Stuck) -> bool:
        """Whether a shard that has a failure lies within it; of a category, each in which it has failed does."""
        if self.kind != "shard":
            return True
        columns = stuck.columns
        mine = (self.shard_scope, canonical(self.shard_identifier))
        return mine == (columns["shard_scope"], canonical(columns["shard_identifier"])) and (
            self.region_name in (None, columns["region_name"])
        )

    def _is_about(self, row: Row) -> bool:
        mine = (self.kind, self.shard_scope, self.category, self.outbox)
        return mine == (row["kind"], row["shard_scope"], row["category"], row["outbox"]) and (
            self.shard_identifier is None or canonical(self.shard_identifier) == canonical(row["shard_identifier"])
        )


def account() -> str:
    """Return the operating system's account; the one behind sudo, where that is used."""
    try:
        return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
    except KeyError:  # in a container, an account may have a number only
        return f"uid {os.getuid()}"


def switches(config: Config) -> Query:
    """Return `switched_off` as a part of other questions, which select from it."""
    lines = [
        _known_switch(config, key, scope)
        for key in option_keys.known(config).values()
        if key.kind in ("outbox", "category", "shard")
        for scope in key.scopes or ("NULL",)
    ]
    return Query(
        about="",
        statement=_STATEMENTS["switched_off"],
        names={
            "schema": sql.quote(config.schema),
            "known": rows_of(lines),
            "scopes": _named({scope.value: name for name, scope in config.scopes.items()}),
            "categories": _named({category.value: name for name, category in config.categories.items()}),
        },
        shard_columns={},
    )


def switched_off_query(config: Config, *, rows_max: int = ROWS_SHOWN_MAX) -> Query:
    """Ask what is switched off, by pauses and by options; also what was resumed for a while."""
    return Query(
        about="What is switched off: a row for each pause, and for each entry of an option (there id is null). It\n"
        "counts while in_force; else it was lifted for a while, and counts from `since` on. To end a pause:\n"
        "outboxd resume ID",
        statement=_STATEMENTS["switched_off_list"],
        values={"rows_max": rows_max},
        names={"switches": switches(config)},
        shard_columns={},
        numbers=numbers_of(config),
    )


async def switched_off(connection: asyncpg.Connection, config: Config) -> list[dict[str, Any]]:
    """Return every row of `switched_off_query`."""
    return await fetch(connection, switched_off_query(config, rows_max=ROWS_READ_MAX), "reading pauses")


async def pauses(connection: asyncpg.Connection, config: Config, ids: Iterable[int]) -> list[dict[str, Any]]:
    """Return rows as `switched_off_query` does, of these pauses."""
    return await fetch(connection, pauses_query(config, ids), "reading pauses")


def pauses_query(config: Config, ids: Iterable[int]) -> Query:
    """Ask for these pauses."""
    return Query(
        about="",
        statement=_STATEMENTS["pauses"],
        values={"ids": list(ids)},
        names={"switches": switches(config)},
        shard_columns={},
    )


def choose_target(
    config: Config,
    *,
    scope: str | None = None,
    shard: str | None = None,
    region: str | None = None,
    category: str | None = None,
    outbox: str | None = None,
    backfill: str | None = None,
    backfill_all: bool = False,
) -> Target | None:
    """
    Return what a command line names; None when it names nothing.

    The shard's identifier is as it was typed: see `checked`.

    Raises:
        UsageError: Half of a shard, more than one thing, or what is not configured.
    """
    named = [(scope, shard, region) != (None, None, None), *(v is not None for v in (category, outbox, backfill))]
    if sum(named) + backfill_all > 1:
        raise errors.UsageError("only one of --scope with --shard, --category, --outbox, --backfill, --backfill-all")
    if category is not None:
        return Target(kind="category", category=choose.choose_category(config, category))
    if outbox is not None:
        _require("outbox", outbox, [each.name for each in config.outbox])
        return Target(kind="outbox", outbox=outbox)
    if backfill is not None:
        _require("model of a table", backfill, [model.table for model in config.model])
        return Target(kind="backfill", table_name=backfill)
    if named[0]:
        return _choose_shard(config, scope, shard, region)
    return Target(kind="backfill") if backfill_all else None


def _choose_shard(config: Config, scope: str | None, shard: str | None, region: str | None) -> Target:
    if scope is None or shard is None:
        raise errors.UsageError("a shard is named by --scope and --shard together")
    if region == "":
        raise errors.UsageError("--region must not be empty")
    if region is not None and not any(contract.has_region(each) for each in config.outbox):
        raise errors.UsageError("no outbox shards by region: --region does not apply")
    number = choose.choose_scope(config, scope)
    region = region if region is None else choose.parse_text(region, "--region")
    return Target(kind="shard", shard_scope=number, shard_identifier=shard, region_name=region)


async def checked(connection: asyncpg.Connection, config: Config, target: Target) -> list[Target]:
    """
    Return the target with the shard's identifier as the outboxes have it.

    It is several where they read it differently: `007` is 7 where identifiers are numbers, and itself where they are
    texts.

    Raises:
        InvalidOutboxError: It is of the type of no outbox.
    """
    if target.shard_identifier is None:
        return [target]
    types = await identifier_types(connection, config)
    found = [each for type_ in types if (each := parsed(target.shard_identifier, type_)) is not None]
    if not found:
        choose.parse_identifier(target.shard_identifier, types[0], "--shard")
    alike = {canonical(each): each for each in found}
    return [dataclasses.replace(target, shard_identifier=each) for each in alike.values()]


def subject(row: Row) -> str:
    """Say what a row switches off."""
    return f"{'backfill of' if row['kind'] == 'backfill' else row['kind']} {row['what']}"


def label(row: Row) -> str:
    """Say which pause or option a row is."""
    return f"option {row['option']}" if row["id"] is None else f"pause {row['id']}"


def origin(row: Row) -> str:
    """Say which pause or option it is, by whom, why, and until when."""
    return about(label(row), row["author"], row["reason"], row["expires_at"])


async def add_pauses(connection: asyncpg.Connection, config: Config, targets: Iterable[Target], by: By) -> set[int]:
    """Write pauses, all of them or none, each in a row of its own; returns their ids."""
    async with acts.transaction(connection, "writing a pause"):
        return {await _add_pause(connection, config, target, by) for target in targets}


async def _add_pause(connection: asyncpg.Connection, config: Config, target: Target, by: By) -> int:
    columns = (target.kind, target.shard_scope, target.shard_identifier, target.region_name, target.category)
    values = (*columns, target.outbox, target.table_name, by.author, by.reason, by.expires)
    number: int = await connection.fetchval(_render(config, "add_pause"), *values)
    return number


async def end_pauses(connection: asyncpg.Connection, config: Config, ids: Iterable[int], by: By) -> set[int]:
    """End pauses; with `by.expires`, for a while. Returns the ids that were there."""
    async with acts.transaction(connection, "ending pauses"):
        if by.expires is None:
            rows = await connection.fetch(_render(config, "end_pauses"), list(ids))
        else:
            rows = await connection.fetch(_render(config, "lift_pauses"), list(ids), by.expires)
    return {row[0] for row in rows}


async def identifier_types(connection: asyncpg.Connection, config: Config) -> list[str]:
    """Return the types of the outboxes' shard identifiers; of a table that is not there, what it is configured for."""
    types = []
    for outbox in config.require_outboxes():
        relation = await inspection.read_relation(connection, outbox.table)
        column = relation.columns.get("shard_identifier") if relation is not None else None
        types.append(column.type if column is not None else outbox.key_type)
    return types


def parsed(text: str, type_: str) -> str | None:
    """Return a shard's identifier as a column of this type has it; None: it cannot."""
    try:
        return str(choose.parse_identifier(text, type_, "--shard"))
    except errors.InvalidOutboxError:
        return None


def _require(kind: str, name: str, known: Sequence[str]) -> None:
    if name not in known:
        raise errors.UsageError(f"there is no {kind} {name}{suggest.nearest(name, known)}")


def _render(config: Config, name: str) -> str:
    return sql.Renderer({"schema": sql.quote(config.schema)}, {}).render(_STATEMENTS[name])


def _known_switch(config: Config, key: option_keys.Key, scope: int | str) -> Sequence[str]:
    """Write a row of `known` for `switched_off`; categories have their numbers beside their names."""
    numbers = [config.categories[name].value for name in key.names or ()] if key.kind == "category" else None
    names = array(key.names, "text")
    return sql.literal(key.name), sql.literal(key.kind), f"({scope})::int4", names, array(numbers, "int4")


def array(values: Sequence[Value] | None, type_: str) -> str:
    """Write an array of names or numbers of the configuration."""
    if values is None:
        return f"NULL::{type_}[]"
    written = ", ".join(str(value) if isinstance(value, int) else sql.literal(str(value)) for value in values)
    return f"ARRAY[{written}]::{type_}[]"


def _named(names: Mapping[int, str]) -> str:
    """Write rows of number and name; at least one, because there is no empty VALUES."""
    return rows_of(
        [("NULL::int4", "NULL::text"), *((str(number), sql.literal(name)) for number, name in names.items())]
    )


def rows_of(rows: Iterable[Sequence[str]]) -> str:
    """Write what stands behind VALUES, from SQL."""
    return ",".join(f"\n    ({', '.join(row)})" for row in rows)
