"""
`outboxd explain`: one answer to "why does this shard not move?".

The facts are one row of one query, which a person can ask in psql as well; `reasons` makes the answer of them.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import msgspec

from outboxd import choose, contract, errors, query, registry, sql
from outboxd.claims import SHARD_CLASS, WORKER_CLASS
from outboxd.inspection import inspect_table
from outboxd.option_keys import canonical_sql
from outboxd.query import Query
from outboxd.reasons import Reason, reasons
from outboxd.shard_case import Known, KnownCategory, summary
from outboxd.shard_facts import Facts
from outboxd.switching import parsed, switches

if TYPE_CHECKING:
    from collections.abc import Mapping

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.load import Loaded
    from outboxd.model import Identifier

_STATEMENTS = sql.load("explain.sql")

MESSAGES_MAX = 10_000
LOCK_CLASSES = (
    f"Classes of advisory locks: {SHARD_CLASS} = a shard that is drained, {WORKER_CLASS} = a daemon that lives."
)
_LOCKED = ("57014", "55P03")
_ABOUT = """\
Why does shard {shard} of {scope} in outbox {outbox} not move? One row: read it with \\x on.
messages and due are counted up to {most}; is_at_least says that there are more.
failures: what failed in it; next_attempt_at is when it is tried again. switches: pauses and options that cover it.
claimed_by: who drains it now. daemons: who could; without backend_pid it is dead, without may_drain its role lacks
privileges on the table. quiet_s: since its claim session did anything; empty where you may not see it.
transactions: who has written to the table and not committed; without since it is another role's, which only members
of pg_read_all_stats see."""


class Asked(msgspec.Struct, frozen=True):
    """What a command line asks for; `shard` as it was typed."""

    outbox: OutboxConfig
    scope: int
    shard: str
    region: str | None = None


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    """
    Why a shard does not move; its fields are the keys of the JSON document.

    Attributes:
        reason: The code of the first of `reasons`, which `headline` says in words.
        waiting: What is in the shard, in words.
        facts: The row that `--sql` returns in psql.
    """

    outbox: str
    region: str | None
    scope: str
    shard: str
    reason: str
    headline: str
    waiting: str
    reasons: list[Reason]
    facts: dict[str, Any]


def ask(config: Config, asked: Asked, types: Mapping[str, str] | None = None) -> Query:
    """
    Return the question.

    Args:
        config: Names, schema, lock key.
        asked: The shard.
        types: SQL types of the sharding columns, as found. None: they are not asked for, and psql will read the
            identifier as it was typed; what depends on its spelling has that of the type that is configured.

    Raises:
        InvalidOutboxError: The shard identifier is not of its column's type.
    """
    identifier: Identifier = asked.shard
    if types is None:
        text = parsed(asked.shard, asked.outbox.key_type) or asked.shard
    else:
        identifier = choose.parse_identifier(asked.shard, types["shard_identifier"], "the shard identifier")
        text = str(identifier)
    shard: dict[str, Any] = {
        "shard_scope": asked.scope,
        "shard_identifier": identifier,
        "region_name": asked.region,
    }
    first, *_ = asked.outbox.sharding_columns
    names = query.names_of(config, asked.outbox) | {
        "regclass": f"{sql.literal(sql.quote_qualified(asked.outbox.table))}::regclass",
        "silo": sql.literal(asked.outbox.silo),
        "canonical": canonical_sql,
        "switches": switches(config),
        "is_shard": Query(about="", statement=_is_shard(asked.outbox), names={}, shard_columns={}),
    }
    scope = next((name for name, each in config.scopes.items() if each.value == asked.scope), str(asked.scope))
    return Query(
        about=_ABOUT.format(shard=identifier, scope=scope, outbox=asked.outbox.name, most=MESSAGES_MAX),
        statement=_STATEMENTS["explain"],
        values={
            **shard,
            "first": [shard[first]],
            "shard_text": text,
            "rows_max": MESSAGES_MAX,
            "shard_class": SHARD_CLASS,
            "worker_class": WORKER_CLASS,
        },
        names=names,
        shard_columns=types or contract.configured_types(asked.outbox),
        numbers=[*query.numbers_of(config), LOCK_CLASSES],
        by_index=True,
    )


def lines(answer: Answer) -> list[str]:
    """Write the answer for people: the headline, what is behind it, what to do; then what else is worth knowing."""
    shown: list[str] = []
    for number, reason in enumerate(answer.reasons):
        shown.append(reason.text if number == 0 else f"also: {reason.text}")
        shown += [f"  {detail}" for detail in reason.details]
        shown += [f"  -> {remedy}" for remedy in reason.remedy]
    region = f" in {answer.region}" if answer.region else ""
    return [*shown, f"shard {answer.shard} of {answer.scope}{region}, outbox {answer.outbox}: {answer.waiting}"]


async def explain(connection: asyncpg.Connection, config: Config, asked: Asked, known: Known) -> Answer:
    """
    Look at a shard and say why it does not move.

    Args:
        connection: Of a reader.
        config: Names, schema, lock key.
        asked: The shard.
        known: Of `look_up`.

    Raises:
        SchemaError, StoreUnavailable, StatementFailed: The table is missing, locked, or out of reach.
        InvalidOutboxError: The shard identifier is not of its column's type.
    """
    table = await inspect_table(connection, asked.outbox)
    question = ask(config, asked, table.shard_columns)
    try:
        row = (await query.fetch(connection, question, f"explaining a shard of outbox {asked.outbox.name}"))[0]
    except errors.StatementFailed as exc:
        if exc.sqlstate in _LOCKED:
            exc.hint = "Perhaps somebody has locked the table: `outboxd doctor` says who."
        raise
    facts = msgspec.convert(row, Facts)
    found = reasons(facts, known)
    return Answer(
        outbox=asked.outbox.name,
        region=asked.region,
        scope=row["scope"],
        shard=row["shard"],
        reason=found[0].code,
        headline=found[0].text,
        waiting=summary(facts),
        reasons=found,
        facts=row,
    )


def look_up(loaded: Loaded, outbox: OutboxConfig) -> Known:
    """
    Return what the configuration and the receiver modules say of categories; a module that fails is no reason.

    Call it before the event loop runs: a module may run one when it is imported.
    """
    config = loaded.config
    error, received = "", None
    try:
        built = registry.assemble(config, loaded.folder)
        received = {number for number, category in built.categories.items() if category.receivers}
    except errors.OutboxdError as exc:
        error = exc.problems[0] if isinstance(exc, errors.ConfigError) else str(exc)
    return Known(
        categories={
            category.value: KnownCategory(
                name=name,
                blocks=category.on_error == "block",
                is_received=received is None or category.value in received,
            )
            for name, category in config.categories.items()
        },
        discards_unhandled=outbox.on_unhandled == "discard",
        retry_on_new_message_s=config.drain.retry_on_new_message_s,
        receivers_error=error,
    )


def _is_shard(outbox: OutboxConfig) -> str:
    """Compare with the values; the first column as `= ANY`, for which drain.sql says why."""
    first, *rest = outbox.sharding_columns
    conditions = [f"o.{sql.quote(first)} = ANY ({{value:first}})"]
    return " AND ".join(conditions + [f"o.{sql.quote(column)} = {{value:{column}}}" for column in rest])
