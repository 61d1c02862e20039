"""
`outboxd migrate --sql`: the same as one script for a DBA, written without a look at the database.

It is one transaction of plain SQL, so that psql and migration tools alike can run it, and can be run
again. What would block a large table is not done but refused, with the statement to run instead.
"""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from outboxd import contract, inspection, migrate, save_function, sql
from outboxd.sql import literal
from outboxd.version import __version__

if TYPE_CHECKING:
    from collections.abc import Iterable

    from outboxd.config import Config, OutboxConfig

_STATEMENTS = sql.load("table.sql")

_HEAD = """\
-- outboxd {version}: creates or completes schema {schema} and the outbox tables.
--
-- Run it as the role that shall own the tables:  psql -v ON_ERROR_STOP=1 -f FILE
-- One transaction; may be run again at any time. It never builds an index on a large table under a lock:
-- it then stops, changes nothing, and its hint names the CREATE INDEX CONCURRENTLY to run first.
-- The daemon's and the producers' roles need grants: `outboxd check --role daemon --as ROLE` prints them.
"""


def migration_sql(config: Config, *, notify: bool = False) -> str:
    """
    Return the script for the outboxes of the silo mode; ends with a line break.

    Args:
        config: Its `outboxes`, categories and schema.
        notify: Also add the trigger that wakes the daemon.
    """
    parts = [
        _HEAD.format(version=__version__, schema=_comment(config.schema)),
        migrate.render(_STATEMENTS["script_begin"], {"lock": f"{migrate.LOCK[0]}, {migrate.LOCK[1]}"}),
        *_schema_parts(config),
        *_category_parts(config),
    ]
    for outbox in config.outboxes:
        parts += _outbox_parts(config, outbox, notify=notify)
    parts += [f"{each.create};\n{each.set_mark};" for each in save_function.functions(config) if config.outboxes]
    return "\n\n".join([*parts, "COMMIT;"]) + "\n"


def _comment(text: str) -> str:
    """Keep a name within its comment, whatever line breaks it holds."""
    return " ".join(text.split())


def _schema_parts(config: Config) -> list[str]:
    schema = sql.quote(config.schema)
    names = {"schema": schema, "number": str(inspection.latest_migration())}
    parts = [
        migrate.render(_STATEMENTS["create_schema"], names) + ";",
        migrate.render(_STATEMENTS["create_migration"], names) + ";",
        _do("script_newer", names),
    ]
    for number, (name, text) in inspection.migrations().items():
        statements = textwrap.indent(migrate.render(text, {"schema": schema}), "    ")
        own = {"schema": schema, "number": str(number), "name": literal(name), "statements": statements}
        parts.append(_do("script_migration", own))
    return parts


def _category_parts(config: Config) -> list[str]:
    document = literal(migrate.categories_json(config)) + "::jsonb"
    names = {"schema": sql.quote(config.schema), "categories": document}
    # A statement that returns rows would make psql print them: they say nothing to who runs the script.
    upsert = _STATEMENTS["upsert_categories"].removesuffix("\nRETURNING name")
    return [
        migrate.render(_STATEMENTS["forget_moved_categories"], names) + ";",
        migrate.render(upsert, names) + ";",
    ]


def _outbox_parts(config: Config, outbox: OutboxConfig, *, notify: bool) -> list[str]:
    table = sql.quote_qualified(outbox.table)
    create = migrate.create_statements(outbox)[0]
    names = {
        "table_literal": literal(table),
        "column_rows": _rows(_column_row(c) for c in contract.columns(outbox)),
        "index_rows": _rows(_index_rows(outbox)),
    }
    parts = [f"-- Outbox {_comment(outbox.name)}.\n{create};", _do("script_adopt", names)]
    if notify:
        trigger = {"table": table, "schema": sql.quote(config.schema)}
        parts.append(migrate.render(_STATEMENTS["create_trigger"], trigger) + ";")
    return parts


def _rows(rows: Iterable[str]) -> str:
    return (",\n" + " " * 12).join(rows)


def _column_row(column: contract.Column) -> str:
    types = ", ".join(literal(kind) for kind in column.types)
    addition = column.declared if column.addable else ""
    must_exist = str(not column.may_lack).lower()
    not_null = str(column.not_null).lower()
    return (
        f"({literal(column.name)}, ARRAY[{types}], {must_exist}, {not_null}, "
        f"{literal(addition)}, {literal(column.default)})"
    )


def _index_rows(outbox: OutboxConfig) -> list[str]:
    wanted = [(("id",), True), (contract.read_index(outbox), False), (contract.find_index(outbox), False)]
    return [f"(ARRAY[{', '.join(map(literal, columns))}], {str(unique).lower()})" for columns, unique in wanted]


def _do(statement: str, names: dict[str, str]) -> str:
    """Write a DO block: comment first, then the body between tags that it does not contain."""
    comment, body = sql.split_header(_STATEMENTS[statement])
    text = migrate.render(body, names)
    tag = "$outboxd$"
    while tag in text:
        tag = tag[:-1] + "_$"
    return f"{comment}DO {tag}\n{text}\n{tag};"
