"""The function that the triggers of capture call: its text, made from the configuration and the tables as they are."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from outboxd import source, sql

if TYPE_CHECKING:
    from outboxd.config import Config, ModelConfig
    from outboxd.inspection import Relation, Table

_STATEMENTS = {name: sql.without_header(text) for name, text in sql.load("capture.sql").items()}
_NEW, _OLD, _CHANGED = "outboxd_new", "outboxd_old", "outboxd_changed"
_PAIRED_AS_THEY_ARE = {"smallint", "integer", "bigint", "uuid", "text"}
"""Types whose equal values are the same; keys of others are paired by what they show."""


class KeyOperators(NamedTuple):
    """The operators of a column of the primary key, as its index has them; None where that is no btree."""

    equal: str | None
    at_least: str | None
    at_most: str | None


class CaptureFunction:
    """
    Writes the function of one model.

    Args:
        config: Schema, scopes and categories.
        model: What is to be written.
        relation: Its source table.
        table: Its outbox.
        operators: Those of each column of the primary key.
    """

    def __init__(
        self, config: Config, model: ModelConfig, relation: Relation, table: Table, operators: list[KeyOperators]
    ) -> None:
        self._config = config
        self._model = model
        self._relation = relation
        self._table = table
        self._keys = list(zip(primary_key(relation), operators, strict=True))
        self._key_names = [f"outboxd_key_{number}" for number in range(1, len(operators) + 1)]

    def text(self, name: str) -> str:
        """Return the statement that creates the function *name*."""
        columns = ", ".join(f"{sql.quote(k)} AS {n}" for (k, _), n in zip(self._keys, self._key_names, strict=True))
        old, new = (_render("columns", values=columns, table=transition) for transition in (_OLD, _NEW))
        of_row = "SELECT " + ", ".join(f"outboxd_stale.{key}" for key in self._key_names)
        statements = {
            "insert": self._statement("changed_new", touched=new),
            "update": self._statement("changed_between", old=_OLD, touched=f"{old} UNION {new}"),
            "delete": self._statement("changed_gone", old=_OLD, touched=of_row),
            "truncate": self._statement("changed_all", old=_CHANGED),
        }
        texts = {
            "name": sql.literal(self._relation.name),
            "lacking": sql.literal(f"outboxd: a row of {self._model.table} has no shard, or no object"),
            **{kind: sql.literal(text) for kind, text in statements.items()},
            **{f"kept_{kind}": text.replace(_CHANGED, self._relation.name) for kind, text in statements.items()},
        }
        tag = "$outboxd$"
        while any(tag in text for text in texts.values()):
            tag = tag[:-1] + "_$"
        return _render("function", schema=sql.quote(self._config.schema), function=name, tag=tag, **texts)

    def _statement(self, changed: str, *, old: str = "", touched: str = "") -> str:
        """Write the messages of what has *changed*: rows of the table *old*, and those of the keys *touched*."""
        watched = (f"outboxd_watched_{number}" for number in range(1, len(self._model.capture_columns) + 1))
        differs = "outboxd_stale.{0}::text IS DISTINCT FROM outboxd_fresh.{0}::text".format
        same = []
        for (key, _), name in zip(self._keys, self._key_names, strict=True):
            cast = "" if self._relation.columns[key].type in _PAIRED_AS_THEY_ARE else "::text"
            same.append(f"outboxd_fresh.{name}{cast} = outboxd_stale.{name}{cast}")
        text = _render(
            changed,
            old_rows=self._rows(self._generated(old), is_gone=True),
            new_rows=self._rows(self._now(touched), is_gone=False),
            same_key=" AND ".join(same),
            is_changed=f"({' OR '.join(map(differs, watched)) or 'true'})",
        )
        return self._write(text)

    def _rows(self, table: str, *, is_gone: bool) -> str:
        """Read what messages need of these rows; of rows that *is_gone*, the payload is that of deleted ones."""
        model = self._model
        alias = source.alias_of(model)

        def listed(prefix: str, columns: list[str]) -> str:
            named = [f"{alias}.{sql.quote(name)} AS outboxd_{prefix}_{n}" for n, name in enumerate(columns, 1)]
            return ", ".join(named) or f"NULL::text AS outboxd_{prefix}"

        row = source.names_of_expressions(model, alias)
        gone = source.expression(model.capture_delete_payload_sql, "NULL::jsonb")
        return _render(
            "rows",
            **{**row, "payload": gone if is_gone else row["payload"]},
            keys=listed("key", [key for key, _ in self._keys]),
            watched=listed("watched", model.capture_columns),
            shard_type=self._table.shard_columns["shard_identifier"],
            object_type=self._table.object_type,
            regions=_regions(model),
            condition=source.expression(model.where_sql, "true"),
            table=table,
            alias=alias,
        )

    def _now(self, touched: str) -> str:
        """Read the rows of these keys as they are."""
        conditions = []
        for number, (key, operators) in enumerate(self._keys, 1):
            column, value = f"outboxd_source.{sql.quote(key)}", f"outboxd_touched.outboxd_key_{number}"
            equal, at_least, at_most = operators
            is_array = self._relation.columns[key].type.endswith("[]")  # of arrays there is no ANY that could be meant
            # What is equal to something needs no order, and any index that begins alike would do. So only the columns
            # in between are: the first is one of an array, the last is bounded from both sides.
            if equal is None:
                conditions.append(f"{column} = {value}")
            elif number == 1 and not is_array:
                conditions.append(f"{column} {equal} ANY (ARRAY[{value}])")
            elif number == len(self._keys) > 1:
                conditions += [f"{column} {at_least} {value}", f"{column} {at_most} {value}"]
            else:
                conditions.append(f"{column} {equal} {value}")
        order = ", ".join(f"outboxd_source.{sql.quote(key)}" for key, _ in self._keys)
        return _render("now", touched=touched, is_touched=" AND ".join(conditions), order=order)

    def _generated(self, table: str) -> str:
        """Generate the virtual columns here: in a transition table they are null, or an error."""
        columns = self._relation.columns.items()
        if all(column.virtual is None for _, column in columns):
            return table
        names = ((sql.quote(name), column.virtual) for name, column in columns)
        values = ", ".join(name if virtual is None else f"({virtual}) AS {name}" for name, virtual in names)
        return f"({_render('columns', values=values, table=table)})"

    def _write(self, changed: str) -> str:
        category = self._config.categories[self._model.category]
        given = {
            "region_name": "target.outboxd_region",
            "shard_scope": str(self._config.scopes[category.scope].value),
            "shard_identifier": "outboxd_changes.outboxd_shard",
            "category": str(category.value),
            "object_identifier": "outboxd_changes.outboxd_object",
            "payload": "outboxd_changes.outboxd_payload",
            "headers": "jsonb_build_object('op', outboxd_changes.outboxd_op)",
        }
        has_region = "region_name" in self._table.shard_columns
        there = {"region_name": has_region, "headers": self._table.has_headers}
        columns = [name for name in given if there.get(name, True)]
        regions = f"\n{_STATEMENTS['regions']}"
        return _render(
            "write",
            outbox=self._table.name,
            columns=", ".join(map(sql.quote, columns)),
            values=", ".join(given[name] for name in columns),
            changed=changed,
            targets=regions if has_region else "",
        )


def primary_key(relation: Relation) -> tuple[str, ...]:
    """Return the columns of a table's primary key; none where it has none."""
    return next((index.keys for index in relation.indexes if index.is_primary), ())


def _regions(model: ModelConfig) -> str:
    if model.region_names_sql.strip():
        return f"({model.region_names_sql}\n)::text[]"
    return f"ARRAY[{', '.join(map(sql.literal, model.region_names))}]::text[]"


def _render(statement: str, **names: str) -> str:
    return sql.Renderer(names, {}).render(_STATEMENTS[statement])
