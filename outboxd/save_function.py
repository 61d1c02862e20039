"""`outboxd.save(…)`, by which any language writes a message: its text, made from the configuration."""

from __future__ import annotations

import hashlib
import itertools
from typing import TYPE_CHECKING, NamedTuple

from outboxd import contract, sql

if TYPE_CHECKING:
    from outboxd.config import Config, OutboxConfig

_GIVEN = ("bigint", "uuid", "text")
IDENTIFIERS = list(itertools.product(_GIVEN, _GIVEN))
"""Types that the two identifiers may be given as."""

_STATEMENTS = sql.load("save_function.sql")


class Function(NamedTuple):
    """One overload: the statement that creates it, the comment that tells its text, and what writes the comment."""

    signature: str
    create: str
    mark: str
    set_mark: str


Types = dict[str, tuple[str, str]]
"""Of each outbox, by name, the types of its columns shard_identifier and object_identifier."""
_WIDEST = {"smallint": "bigint", "integer": "bigint", "character varying": "text"}
"""What is cast to: the INSERT itself makes the column's type of it, and refuses what is beyond."""


def functions(config: Config, types: Types | None = None) -> list[Function]:
    """
    Return the overloads for the outboxes of the silo mode.

    A message goes where the contract says: without a name, to the one outbox that shards by region exactly when it has
    one.

    Args:
        config: Its `outboxes` and schema.
        types: As the tables are; None: as they are configured.
    """
    found = types or {outbox.name: (outbox.key_type, outbox.key_type) for outbox in config.outboxes}
    return [_function(config, identifiers, found) for identifiers in IDENTIFIERS]


def marks_query(config: Config) -> str:
    """Return the statement that reads which overloads are there, and by which configuration they were made."""
    signatures = [f"({sql.literal(_signature(config, each))})" for each in IDENTIFIERS]
    return sql.Renderer({"signatures": ", ".join(signatures)}, {}).render(_STATEMENTS["marks"])


def _signature(config: Config, identifiers: tuple[str, str]) -> str:
    return f"{sql.quote(config.schema)}.save(text, {', '.join(identifiers)}, jsonb, text, jsonb, text)"


def _function(config: Config, identifiers: tuple[str, str], types: Types) -> Function:
    names = {
        "schema": sql.quote(config.schema),
        "signature": _signature(config, identifiers),
        "given_shard": identifiers[0],
        "given_object": identifiers[1],
        "branches": "".join(_branch(outbox, types[outbox.name]) for outbox in config.outboxes),
        "without_region": _only([o for o in config.outboxes if not contract.has_region(o)]),
        "with_region": _only([o for o in config.outboxes if contract.has_region(o)]),
        "hint": sql.literal(f"Outboxes: {', '.join(map(_shown, config.outboxes))}. Name one: outbox => '…'."),
    }
    tag = "$outboxd$"
    while any(tag in text for text in names.values()):
        tag = tag[:-1] + "_$"
    create = sql.Renderer(names | {"tag": tag}, {}).render(sql.without_header(_STATEMENTS["save"]))
    mark = f"Writes a message to an outbox. {hashlib.sha256(create.encode()).hexdigest()[:16]}"
    set_mark = sql.Renderer(names | {"text": sql.literal(mark)}, {}).render(sql.without_header(_STATEMENTS["mark"]))
    return Function(names["signature"], create, mark, set_mark)


def _branch(outbox: OutboxConfig, types: tuple[str, str]) -> str:
    statement = _STATEMENTS["branch_with_region" if contract.has_region(outbox) else "branch"]
    names = {
        "table": sql.quote_qualified(outbox.table),
        "name": sql.literal(outbox.name),
        "shard_type": _WIDEST.get(types[0], types[0]),
        "object_type": _WIDEST.get(types[1], types[1]),
    }
    return "\n" + sql.Renderer(names, {}).render(sql.without_header(statement).strip("\n"))


def _only(outboxes: list[OutboxConfig]) -> str:
    return sql.literal(outboxes[0].name) if len(outboxes) == 1 else "NULL"


def _shown(outbox: OutboxConfig) -> str:
    return f"{outbox.name} ({'with' if contract.has_region(outbox) else 'no'} region)"
