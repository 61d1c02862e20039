"""
What an operator asks about waiting messages: the deepest shards, the stuck ones, one shard's, one object's.

Each function returns a `Query`, which the commands run or print. None reads a large table whole: where counting
would, the answer is an estimate and says so.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from outboxd import inspection, sql
from outboxd.option_keys import canonical_sql
from outboxd.query import Filling, Query, Value, fetch, names_of, numbers_of
from outboxd.switching import switches

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.model import Identifier

_STATEMENTS = {name: sql.without_header(text) for name, text in sql.load("diagnosis.sql").items()}

PAYLOAD_BYTES_MAX = 65_536
"""Payloads and headers stored larger, or eight times as large when unpacked, are not read."""

_ESTIMATE = """oldest and newest say when a message was written.
Of a large table a fixed sample of its pages is read. Then is_estimate is true: figures are scaled up, and oldest and
newest are those of the messages that were read."""


@dataclass(frozen=True, kw_only=True)
class Bounds:
    """
    How much one question may read.

    Attributes:
        pages: Pages of a table, about; a table with more is sampled, unless it has few messages.
        rows: Messages, newest first, to find out whether a table of many pages has few messages.
        dead: Dead rows that may lie between them, as the server's statistics know them; ten million take two seconds.
        counted: Messages that are counted along the index, over all shards of an answer.
        object_rows: Messages, newest first, that are searched for an object.
        failures: Failing objects of an outbox, in the order of their shards, among which stuck shards are looked for.
    """

    pages: int = 2_000
    rows: int = 20_000
    dead: int = 20_000_000
    counted: int = 100_000
    object_rows: int = 1_000_000
    failures: int = 1_000_000

    def values(self, limit: int) -> dict[str, Value]:
        """Return the values of the statements, for an answer of so many shards."""
        counted = max(1, min(10_000, self.counted // limit))
        bounds = {"pages": self.pages, "rows": self.rows, "dead": self.dead, "failures": self.failures}
        return {**bounds, "counted": counted, "limit": limit}


BOUNDS = Bounds()


@dataclass(frozen=True, slots=True)
class ShardDepth:
    """How many messages wait in a shard; an estimate where the table is large and the shard deep."""

    outbox: str
    region_name: str | None
    shard_scope: int
    shard_identifier: Identifier
    depth: int
    is_estimate: bool


@dataclass(frozen=True, slots=True)
class OutboxCount:
    """How many messages wait; an estimate where a table is large."""

    messages: int
    is_estimate: bool


async def get_shard_depths_descending(
    connection: asyncpg.Connection,
    config: Config,
    limit: int = 10,
    *,
    outboxes: Sequence[OutboxConfig] | None = None,
) -> list[ShardDepth]:
    """
    Tell the deepest shards, deepest first.

    Args:
        connection: Of a role that may read the outboxes and outboxd's own schema; not inside a transaction.
        config: `outboxd.load.load().config` is that of the daemon.
        limit: Shards at most, over all outboxes; above 0.
        outboxes: Which to look at; None: those of the silo mode.

    Returns:
        Identifiers of uuid and text columns are strings. Empty when nothing waits.

    Raises:
        StatementFailed: It took longer than `query.TIMEOUT_S`, or the database refuses it.
        SchemaError, StoreUnavailable: A table or privilege is missing; the database is away.
    """
    query = shards(config, outboxes or config.require_outboxes(), limit=limit)
    rows = await fetch(connection, query, "counting the deepest shards")
    return [ShardDepth(*(row[name] for name in ShardDepth.__slots__)) for row in rows]


async def get_total_outbox_count(
    connection: asyncpg.Connection,
    config: Config,
    *,
    outboxes: Sequence[OutboxConfig] | None = None,
    bounds: Bounds = BOUNDS,
) -> OutboxCount:
    """
    Count the messages that wait, due or not, in all outboxes together.

    Arguments and errors as for `get_shard_depths_descending`. Exact for a table that has few pages or few messages,
    else scaled up from a sample of its pages.
    """
    messages, is_estimate = 0, False
    for outbox in outboxes or config.require_outboxes():
        names = {**_names(config, outbox), "seen": _part("seen", config, outbox)}
        query = _query("total", config, outbox, names, bounds.values(1), about="")
        row = (await fetch(connection, query, f"counting outbox {outbox.name}"))[0]
        messages, is_estimate = messages + row["messages"], is_estimate or row["is_estimate"]
    return OutboxCount(messages, is_estimate)


async def now(connection: asyncpg.Connection) -> str:
    """Tell the time that schedules are compared with, as ISO 8601 in UTC."""
    query = Query(about="", statement=_STATEMENTS["clock"], names={}, shard_columns={})
    text: str = (await fetch(connection, query, "asking for the time"))[0]["now"]
    return text


async def type_of(connection: asyncpg.Connection, outbox: OutboxConfig, column: str) -> str:
    """
    Tell the SQL type of a column of an outbox.

    Raises:
        SchemaError: There is no such table or column.
    """
    relation = await inspection.read_relation(connection, outbox.table)
    if relation is None or column not in relation.columns:
        raise inspection.missing_table(outbox)
    return relation.columns[column].type


def shards(
    config: Config, outboxes: Sequence[OutboxConfig], *, limit: int, region: str | None = None, bounds: Bounds = BOUNDS
) -> Query:
    """Ask for the deepest shards of some outboxes, deepest first; what is switched off is said of each."""
    about = f"""The {limit} deepest shards of {_list_of(outboxes)}{_in_region(region)}, deepest first.
depth: messages that wait, due: those that may run now.
state: paused (by a pause or an option), in backoff (it has failed), due, or not due; until: when that ends.
because: who paused it and why, or the last error of what fails in it.
{_ESTIMATE}"""
    order = "ORDER BY depth DESC, outbox, region_name, shard_scope, shard_identifier"
    return _joined("shards", config, outboxes, about, order, bounds.values(limit), region)


def stuck(
    config: Config, outboxes: Sequence[OutboxConfig], *, limit: int, region: str | None = None, bounds: Bounds = BOUNDS
) -> Query:
    """Ask for the shards that are in backoff, the one that has failed longest first."""
    about = f"""Shards in backoff of {_list_of(outboxes)}{_in_region(region)}, {limit} at most.
Something in them has failed and is tried again; the one that has failed longest first.
category, object, attempts and last_error: of the object that has failed most often; failing_objects: how many fail.
depth: messages of the shard, the failing one among them; is_at_least: there may be more.
depth and next_attempt are empty when the message that failed is gone.
paused: what is switched off that holds this object, by whom and why; paused_until: when that ends, if it does.
oldest and newest say when a message of the shard was written.
is_partial: more than {bounds.failures} objects of the outbox fail, and only so many were looked at."""
    order = "ORDER BY first_failed_at, outbox, region_name, shard_scope, shard_identifier"
    return _joined("stuck", config, outboxes, about, order, bounds.values(limit), region)


def messages_of_shard(
    config: Config, outbox: OutboxConfig, scope: int, identifier: Identifier, *, region: str | None, limit: int
) -> Query:
    """Ask for a shard's messages, newest first."""
    about = f"""Messages of one shard of {_list_of([outbox])}{_in_region(region)}, newest first, {limit} at most.
{_ABOUT_MESSAGES}"""
    found = messages(config, outbox, shard=(scope, identifier), region=region, limit=limit)
    return dataclasses.replace(found, about=about)


def messages_of_object(
    config: Config,
    outbox: OutboxConfig,
    category: int,
    identifier: Identifier,
    *,
    limit: int,
    region: str | None = None,
    bounds: Bounds = BOUNDS,
) -> Query:
    """Ask for the messages about one object, newest first, among the newest of the outbox."""
    about = f"""Messages about one object in {_list_of([outbox])}{_in_region(region)}, newest first, {limit} at most.
No index knows objects: only the newest {bounds.object_rows} messages of the outbox are looked at.
{_ABOUT_MESSAGES}"""
    found = messages(
        config, outbox, category=category, object_identifier=identifier, region=region, limit=limit, bounds=bounds
    )
    return dataclasses.replace(found, about=about)


def messages(
    config: Config,
    outbox: OutboxConfig,
    *,
    message_id: int | None = None,
    below: int | None = None,
    shard: tuple[int, Identifier] | None = None,
    region: str | None = None,
    category: int | None = None,
    object_identifier: Identifier | None = None,
    limit: int,
    payload_bytes_max: int = PAYLOAD_BYTES_MAX,
    bounds: Bounds = BOUNDS,
) -> Query:
    """
    Ask for the messages that all of this is true of, newest first.

    Args:
        config: Has the names.
        outbox: Where to look.
        message_id: The one with this id.
        below: Those with a lower id: how a list goes on.
        shard: Scope and identifier; with *region*, where the outbox shards by region.
        region: Its name.
        category: Its number; looked for among the newest `bounds.object_rows` messages, of the shard if one is given.
        object_identifier: Looked for as a category is.
        limit: Messages at most.
        payload_bytes_max: Payloads and headers that are larger are not read; 0: none is.
        bounds: How much may be read.
    """
    led, of_shard = ([], {}) if shard is None else _of_shard(outbox, *shard, region)
    led += [] if message_id is None else ["o.id = {value:id}"]
    led += [] if below is None else ["o.id < {value:below}"]
    fits = [] if category is None else ["o.category = {value:category}"]
    fits += [] if object_identifier is None else ["o.object_identifier = {value:object}"]
    fits += [] if region is None or of_shard else ["o.region_name = {value:region_name}"]
    values: dict[str, Value] = {"id": message_id, "below": below, "category": category, "object": object_identifier}
    values |= {"region_name": region, **of_shard}
    values |= {"rows": bounds.object_rows if fits else limit, "limit": limit, "payload": payload_bytes_max}
    about = f"Messages of {_list_of([outbox])}{_in_region(region)}, newest first, {limit} at most.\n{_ABOUT_MESSAGES}"
    names = {
        **_names_of_messages(config, outbox),
        "led": _fragment(" AND ".join(led) or "true"),
        "fits": _fragment(" AND ".join(fits) or "true"),
        "backwards": _part("backwards", config, outbox) if of_shard else "",
    }
    found = _query("messages", config, outbox, names, values, about=about, numbers=numbers_of(config))
    return dataclasses.replace(found, unparsed=("payload", "headers"))


def _of_shard(
    outbox: OutboxConfig, scope: int, identifier: Identifier, region: str | None
) -> tuple[list[str], dict[str, Value]]:
    """Return the conditions that lead to a shard, and their values."""
    shard: dict[str, Any] = {"shard_scope": scope, "shard_identifier": identifier, "region_name": region}
    first, *others = outbox.sharding_columns
    conditions = [f"o.{sql.quote(first)} = ANY ({{value:{first}}})"]
    conditions += [f"o.{sql.quote(column)} = {{value:{column}}}" for column in others]
    return conditions, {first: [shard[first]], **{column: shard[column] for column in others}}


_ABOUT_MESSAGES = f"""attempts and last_error: what is known of the object's failures; empty when it has not failed.
payload_size: bytes as stored. A payload above {PAYLOAD_BYTES_MAX} bytes is not shown: read it by the message's id."""


def depth(
    config: Config, outbox: OutboxConfig, category: int, *, region: str | None = None, bounds: Bounds = BOUNDS
) -> Query:
    """Ask how many messages of a category wait in an outbox; one row."""
    about = f"""How many messages of one category wait in {_list_of([outbox])}{_in_region(region)}.
due: those that may run now.
{_ESTIMATE}"""
    names = {**_names(config, outbox), **_narrowed(region), "seen": _part("seen", config, outbox)}
    values = bounds.values(1) | {"category": category, "region": region}
    return _query("depth", config, outbox, names, values, about=about, numbers=numbers_of(config))


def _joined(
    statement: str,
    config: Config,
    outboxes: Sequence[OutboxConfig],
    about: str,
    order: str,
    values: Mapping[str, Value],
    region: str | None,
) -> Query:
    """Ask every outbox, and put the answers into one list."""
    parts = {f"outbox_{n}": _part(statement, config, outbox, region) for n, outbox in enumerate(outboxes)}
    joined = "\nUNION ALL\n".join(f"(\n{{{name}}}\n)" for name in parts)
    return Query(
        about=about,
        numbers=numbers_of(config),
        statement=f"{joined}\n{order}\nLIMIT {{value:limit}}",
        values={**values, "region": region},
        names=parts,
        shard_columns={},
        by_index=True,
    )


def _query(
    statement: str,
    config: Config,
    outbox: OutboxConfig,
    names: Mapping[str, Filling],
    values: Mapping[str, Value],
    *,
    about: str,
    numbers: Sequence[str] = (),
) -> Query:
    return Query(
        about=about,
        numbers=numbers,
        statement=_STATEMENTS[statement],
        values=values,
        names=names,
        shard_columns=dict.fromkeys(outbox.sharding_columns, ""),
        by_index=True,
    )


def _part(statement: str, config: Config, outbox: OutboxConfig, region: str | None = None) -> Query:
    """Return a statement as a part of another one."""
    names = {**_names(config, outbox), **_narrowed(region)}
    if statement in _MADE_OF:
        names |= {name: _part(name, config, outbox, region) for name in _MADE_OF[statement]}
    return _query(statement, config, outbox, names, {}, about="")


_MADE_OF = {"shards": ("seen", "off", "paused"), "stuck": ("off", "paused")}


def _names_of_messages(config: Config, outbox: OutboxConfig) -> dict[str, Filling]:
    parts = {name: _part(name, config, outbox) for name in ("message_columns", "failure_of_message")}
    return {**_names(config, outbox), **parts}


def _narrowed(region: str | None) -> dict[str, Filling]:
    if region is None:
        return {"in_region": "true"}
    return {"in_region": _fragment("region_name = {value:region}")}


def _names(config: Config, outbox: OutboxConfig) -> dict[str, Filling]:
    """
    Return what fills the placeholders of this module's statements, beside those of `names_of`.

    | written             | becomes                                                                         |
    |---------------------|---------------------------------------------------------------------------------|
    | `{relation}`        | the table, as a `regclass`                                                      |
    | `{same_shard:s}`    | the condition that message `o` is of the shard of `s`                           |
    | `{shard_backwards:o}` | the sharding columns, each descending                                         |
    | `{switches}`        | what is switched off: `switching.switches`                                      |
    | `{canonical:s}`     | the identifier of `s` as kill switches are compared                             |
    | `{skipping}`        | the numbers of categories whose failures do not hold their shard                |
    """
    columns = [sql.quote(column) for column in outbox.sharding_columns]
    skipping = [str(each.value) for each in config.categories.values() if each.on_error == "skip"]

    def same_shard(alias: str) -> str:
        first, *rest = columns
        return " AND ".join([f"o.{first} = ANY (ARRAY[{alias}.{first}])", *(f"o.{c} = {alias}.{c}" for c in rest)])

    return {
        **names_of(config, outbox),
        "relation": f"{sql.literal(sql.quote_qualified(outbox.table))}::regclass",
        "same_shard": same_shard,
        "shard_backwards": lambda alias: ", ".join(f"{alias}.{column} DESC" for column in columns),
        "switches": switches(config),
        "canonical": canonical_sql,
        "skipping": f"'{{{','.join(skipping)}}}'::int4[]",
    }


def _fragment(statement: str) -> Query:
    return Query(about="", statement=statement, names={}, shard_columns={})


def _list_of(outboxes: Sequence[OutboxConfig]) -> str:
    return ("outbox " if len(outboxes) == 1 else "outboxes ") + ", ".join(outbox.name for outbox in outboxes)


def _in_region(region: str | None) -> str:
    return "" if region is None else f", region {region}"
