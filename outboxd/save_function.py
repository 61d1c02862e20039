"""`outboxd.save(…)`, by which any language writes a message: its text, made from the configuration."""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, NamedTuple

from outboxd import contract, sql

if TYPE_CHECKING:
    from outboxd.config import Config, OutboxConfig

IDENTIFIERS = ("bigint", "uuid", "text")
"""Types that an identifier may be given as."""

_STATEMENTS = sql.load("save_function.sql")


class Function(NamedTuple):
    """One overload: the statement that creates it, the comment that tells its text, and what writes the comment."""

    identifier: str
    create: str
    mark: str
    set_mark: str


def functions(config: Config) -> list[Function]:
    """
    Return the overloads for the outboxes of the silo mode.

    A message goes where the contract says: without a name, to the one outbox that shards by region exactly when it has
    one.
    """
    return [_function(config, identifier) for identifier in IDENTIFIERS]


def marks_query(config: Config) -> str:
    """Return the statement that reads which overloads are there, and by which configuration they were made."""
    signatures = [
        f"({sql.literal(each)}, {sql.literal(f'{sql.quote(config.schema)}.save({_types(each)})')})"
        for each in IDENTIFIERS
    ]
    return sql.Renderer({"signatures": ", ".join(signatures)}, {}).render(_STATEMENTS["marks"])


def _types(identifier: str) -> str:
    return f"text, {identifier}, {identifier}, jsonb, text, jsonb, text"


def _function(config: Config, identifier: str) -> Function:
    outboxes = list(enumerate(config.outboxes, 1))
    names = {
        "schema": sql.quote(config.schema),
        "identifier": identifier,
        "declarations": "".join(_part("declaration", outbox, number) for number, outbox in outboxes),
        "branches": "".join(
            _part("branch_with_region" if contract.has_region(outbox) else "branch", outbox, number)
            for number, outbox in outboxes
        ),
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
    return Function(identifier, create, mark, set_mark)


def _part(statement: str, outbox: OutboxConfig, number: int) -> str:
    names = {
        "table": sql.quote_qualified(outbox.table),
        "number": str(number),
        "name": sql.literal(outbox.name),
    }
    return "\n" + sql.Renderer(names, {}).render(sql.without_header(_STATEMENTS[statement]).strip("\n"))


def _only(outboxes: list[OutboxConfig]) -> str:
    return sql.literal(outboxes[0].name) if len(outboxes) == 1 else "NULL"


def _shown(outbox: OutboxConfig) -> str:
    return f"{outbox.name} ({'with' if contract.has_region(outbox) else 'no'} region)"
