"""
What is there: outbox tables and outboxd's own schema, compared with what must be there.

`inspect_table` and `require_schema` are for whoever is about to work; `read_relation` and the
functions that list faults are for `migrate` and `check`. Nothing here changes anything.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from importlib import resources
from typing import TYPE_CHECKING, Any, Protocol

import asyncpg

from outboxd import contract, errors, sql
from outboxd.session import refuse_pooler, translate, visit

if TYPE_CHECKING:
    from collections.abc import Iterator

    from outboxd.config import Config, OutboxConfig

_STATEMENTS = sql.load("inspect.sql")

_KINDS = {
    "p": "a partitioned table (a find would have to look into every partition)",
    "v": "a view",
    "m": "a materialized view",
    "f": "a foreign table",
}
NOTIFY_TRIGGER = "outboxd_notify"

FAILURES = (asyncpg.PostgresError, asyncpg.InterfaceError, asyncpg.InternalClientError, OSError, TimeoutError)
"""What the driver raises when a statement fails; the third where the connection went between two of its steps."""


@contextlib.contextmanager
def translated(doing: str) -> Iterator[None]:
    """Let errors of the driver leave as ours; *doing* opens their message."""
    try:
        yield
    except FAILURES as exc:
        raise translate(exc, doing) from exc


class Asks(Protocol):
    """Whatever runs statements with parameters `$1` …: a connection of the driver, or of an application's."""

    async def fetch(self, statement: str, /, *args: Any) -> Any:
        """Return the rows, which are read by column name."""

    async def fetchrow(self, statement: str, /, *args: Any) -> Any:
        """Return the first row; None when there is none."""


@dataclass(frozen=True, slots=True)
class Table:
    """
    An outbox table that can be drained.

    Attributes:
        name: Quoted and qualified, ready for SQL.
        shard_columns: Sharding columns and their SQL types (`bigint`, `character varying` …), in order.
        object_type: The SQL type of `object_identifier`.
    """

    oid: int
    name: str
    shard_columns: dict[str, str]
    object_type: str
    has_headers: bool


@dataclass(frozen=True, slots=True)
class ColumnState:
    """A column as found; `type` as `format_type` writes it, without a modifier; `virtual`: what generates it."""

    type: str
    not_null: bool
    has_default: bool
    is_identity: bool
    virtual: str | None


@dataclass(frozen=True, slots=True)
class IndexState:
    """An index as found; `name` is quoted and qualified. See `indexes` in inspect.sql."""

    name: str
    keys: tuple[str, ...]
    is_valid: bool
    is_unique: bool
    is_primary: bool
    is_plain: bool
    is_building: bool

    def serves(self, columns: tuple[str, ...]) -> bool:
        """Tell whether a range scan over *columns*, in this order, can use it."""
        return self.is_valid and self.is_plain and self.keys[: len(columns)] == columns

    def identifies(self, column: str) -> bool:
        """Tell whether it makes *column* alone unique."""
        return self.is_valid and self.is_plain and self.is_unique and self.keys == (column,)


@dataclass(frozen=True, slots=True)
class Relation:
    """A relation that stands under a configured name, as found; `name` is quoted and qualified."""

    oid: int
    name: str
    kind: str
    persistence: str
    is_inherited: bool
    owner: str
    row_security: bool
    options: tuple[str, ...]
    columns: dict[str, ColumnState]
    indexes: tuple[IndexState, ...]


@dataclass(frozen=True, slots=True)
class Fault:
    """Something that must be mended by hand or by `outboxd migrate`; `remedy` is SQL or a sentence."""

    text: str
    remedy: str = ""

    def __str__(self) -> str:
        return f"{self.text}: {self.remedy}" if self.remedy else self.text


async def inspect_table(connection: asyncpg.Connection, outbox: OutboxConfig) -> Table:
    """
    Find out what an outbox table is made of.

    Raises:
        SchemaError: It cannot be drained as it is; lists everything that is missing or wrong.
        StoreUnavailable: The connection is gone.
    """
    relation = await read_relation(connection, outbox.table)
    if relation is None:
        raise missing_table(outbox)
    faults = [*refusals(relation, outbox), *gaps(relation, outbox)]
    if faults:
        raise faults_error(outbox, faults)
    return _table_of(relation, outbox)


async def read_table(connection: Asks, outbox: OutboxConfig) -> Table:
    """
    Find out what an outbox table is made of, for who writes in it: its indexes do not matter.

    Raises:
        SchemaError: It is not there, or lacks a column.
    """
    relation = await read_relation(connection, outbox.table)
    if relation is None:
        raise missing_table(outbox)
    needed = [column.name for column in contract.columns(outbox) if not column.may_lack]
    if missing := [name for name in needed if name not in relation.columns]:
        raise faults_error(outbox, [Fault(f"column {name} is missing") for name in missing])
    return _table_of(relation, outbox)


def _table_of(relation: Relation, outbox: OutboxConfig) -> Table:
    return Table(
        oid=relation.oid,
        name=relation.name,
        shard_columns={c: relation.columns[c].type for c in outbox.sharding_columns},
        object_type=relation.columns["object_identifier"].type,
        has_headers="headers" in relation.columns,
    )


def missing_table(outbox: OutboxConfig) -> errors.SchemaError:
    """Build the error for an outbox whose table is not there, or not on the search_path."""
    return errors.SchemaError(
        f"outbox {outbox.name}: there is no table {outbox.table}",
        hint="Run `outboxd migrate`; write schema.table when it lies outside the search_path.",
    )


def faults_error(outbox: OutboxConfig, faults: list[Fault]) -> errors.SchemaError:
    """Build one error of all faults of a table."""
    lines = "".join(f"\n  - {fault}" for fault in faults)
    return errors.SchemaError(
        f"outbox {outbox.name}: table {outbox.table} cannot be drained as it is:{lines}",
        hint="Run `outboxd migrate`: it adds what can be added.",
    )


async def read_relation(connection: Asks, table: str) -> Relation | None:
    """
    Read what the catalog says about a configured table; None when there is none.

    Raises:
        SchemaError: Its schema may not be used by this role.
        StoreUnavailable: The connection is gone.
    """
    with translated(f"looking at table {table}"):
        row = await connection.fetchrow(_STATEMENTS["relation"], sql.quote_qualified(table))
        if row is None:
            return None
        columns = await connection.fetch(_STATEMENTS["columns"], row["oid"])
        indexes = await connection.fetch(_STATEMENTS["indexes"], row["oid"])
    return Relation(
        oid=row["oid"],
        name=f"{sql.quote(row['schema'])}.{sql.quote(row['name'])}",
        kind=row["kind"],
        persistence=row["persistence"],
        is_inherited=row["is_inherited"],
        owner=row["owner"],
        row_security=row["row_security"],
        options=tuple(row["options"]),
        columns={c["name"]: _column(c) for c in columns},
        indexes=tuple(_index(i) for i in indexes),
    )


def _column(row: asyncpg.Record) -> ColumnState:
    return ColumnState(row["type"], row["not_null"], row["has_default"], row["identity"] != "", row["virtual"])


def _index(row: asyncpg.Record) -> IndexState:
    return IndexState(
        name=f"{sql.quote(row['schema'])}.{sql.quote(row['name'])}",
        keys=tuple(row["keys"]),
        is_valid=row["is_valid"],
        is_unique=row["is_unique"],
        is_primary=row["is_primary"],
        is_plain=row["is_plain"],
        is_building=row["is_building"],
    )


def refusals(relation: Relation, outbox: OutboxConfig) -> list[Fault]:
    """List what `migrate` will not mend, because only the table's owner can decide how."""
    if relation.kind != "r":
        kind = _KINDS.get(relation.kind, "not a table")
        return [Fault(f"{relation.name} is {kind}; an outbox must be an ordinary table")]
    faults = []
    if relation.is_inherited:
        faults.append(Fault(f"{relation.name} is a partition or has child tables"))
    if relation.row_security:
        text = "row level security hides rows from this role: messages would be passed over in silence"
        faults.append(Fault(text, f"ALTER TABLE {relation.name} DISABLE ROW LEVEL SECURITY;"))
    for column in contract.columns(outbox):
        faults += _column_refusals(relation, column)
    return faults


def _column_refusals(relation: Relation, column: contract.Column) -> list[Fault]:
    found = relation.columns.get(column.name)
    if found is None:
        if column.addable or column.may_lack:
            return []
        declared = column.declared.replace(" PRIMARY KEY", "")
        remedy = f"ALTER TABLE {relation.name} ADD COLUMN {column.name} {declared};"
        return [Fault(f"column {column.name} is missing", f"{remedy} (on an empty table)")]
    change = f"ALTER TABLE {relation.name} ALTER COLUMN {column.name}"
    if found.type not in column.types:
        text = f"column {column.name} is {found.type}, not {' or '.join(column.types)}"
        return [Fault(text, _retype(change, column))]
    if column.not_null and not found.not_null:
        return [Fault(f"column {column.name} can be null", f"{change} SET NOT NULL;")]
    return []


def _retype(change: str, column: contract.Column) -> str:
    """Write the ALTER that mends a type, where there is only one sensible conversion."""
    if column.name in ("payload", "headers"):
        return f"{change} TYPE jsonb USING {column.name}::jsonb;"
    if column.types == ("timestamp with time zone",):
        return f"{change} TYPE timestamptz USING {column.name} AT TIME ZONE 'UTC';"
    return ""


def gaps(relation: Relation, outbox: OutboxConfig) -> list[Fault]:
    """List what `migrate` adds and the daemon cannot do without; [] when `refusals` found another kind."""
    if relation.kind != "r":
        return []
    faults = [
        Fault(f"column {column.name} is missing")
        for column in contract.columns(outbox)
        if column.addable and column.name not in relation.columns
    ]
    if not any(index.identifies("id") for index in relation.indexes):
        faults.append(Fault("there is no primary key on (id)"))
    return faults + [
        Fault(f"there is no valid index on ({', '.join(columns)})") for columns in missing_indexes(relation, outbox)
    ]


def missing_indexes(relation: Relation, outbox: OutboxConfig) -> list[tuple[str, ...]]:
    """Return the columns of the indexes that are not served by any valid one."""
    wanted = (contract.read_index(outbox), contract.find_index(outbox))
    return [columns for columns in wanted if not any(i.serves(columns) for i in relation.indexes)]


def missing_defaults(relation: Relation, outbox: OutboxConfig) -> list[contract.Column]:
    """Return the columns that are there without the default that plain INSERTs rely on."""
    return [
        column
        for column in contract.columns(outbox)
        if column.default and column.name in relation.columns and not relation.columns[column.name].has_default
    ]


async def notify_trigger(connection: asyncpg.Connection, oid: int) -> bool | None:
    """Tell whether INSERTs into a table wake the daemon: None without trigger, False when it is disabled."""
    enabled: bool | None = await connection.fetchval(_STATEMENTS["triggers"], oid, NOTIFY_TRIGGER)
    return enabled


def latest_migration() -> int:
    """Tell the number of the newest migration that this version brings."""
    return max(migrations())


def migrations() -> dict[int, tuple[str, str]]:
    """Read the migrations of this version: number -> (name, SQL), in order."""
    folder = resources.files("outboxd.sql").joinpath("migrations")
    files = sorted((f for f in folder.iterdir() if f.name.endswith(".sql")), key=lambda f: f.name)
    return {int(f.name[:4]): (f.name[5:-4], f.read_text(encoding="utf-8")) for f in files}


async def migrated_to(connection: asyncpg.Connection, schema: str) -> int | None:
    """
    Tell the newest migration that the database has had; None when there was none.

    Raises:
        SchemaError: This role may not read it.
        StoreUnavailable: The connection is gone.
    """
    statement = sql.Renderer({"schema": sql.quote(schema)}, {}).render(_STATEMENTS["migrated_to"])
    with translated(f"reading {schema}.migration"):
        if not await connection.fetchval(_STATEMENTS["has_table"], schema, "migration"):
            return None
        number: int = await connection.fetchval(statement)
    return number or None


async def require_database(dsn_text: str, config: Config) -> None:
    """
    Refuse a database that this version cannot work on, before anything is begun there.

    Raises:
        PoolerError: A pooler stands in between, and locks would be stranded.
        SchemaError: As `require_schema`.
        ConfigError, StoreUnavailable: As `session.connect`.
    """
    async with visit(dsn_text, name="inspect") as connection:
        await refuse_pooler(connection)  # first: waiting for a migration would not mend it
        await require_schema(connection, config)


async def require_schema(connection: asyncpg.Connection, config: Config) -> None:
    """
    Refuse a database whose schema is not the one that this version works with.

    Raises:
        SchemaError: Not migrated, not far enough, or by a newer outboxd.
        StoreUnavailable: The connection is gone.
    """
    number, latest = await migrated_to(connection, config.schema), latest_migration()
    if number is None:
        raise errors.SchemaError(
            f"the database has no schema {config.schema} of outboxd", hint="Run `outboxd migrate`."
        )
    if number < latest:
        raise errors.SchemaError(
            f"schema {config.schema} is at migration {number}, this version needs {latest}",
            hint="Run `outboxd migrate`.",
        )
    refuse_newer(config.schema, number)


def refuse_newer(schema: str, number: int) -> None:
    """
    Refuse a schema that a newer outboxd has migrated.

    Raises:
        SchemaError: *number* is above what this version knows.
    """
    if number > latest_migration():
        raise errors.SchemaError(
            f"schema {schema} is at migration {number}, of a newer outboxd: this version knows {latest_migration()}",
            hint="Upgrade outboxd.",
        )
