"""
Named SQL statements from .sql files, and the one place where names become SQL.

A file holds statements under `-- name: <statement>` headers. Placeholders in braces stand for
names that are known at start-up and validated there; run-time values are always bound.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping
from importlib import resources

_NAME = re.compile(r"^-- name: (\w+)[^\S\n]*\n", re.MULTILINE)
_HEADER = re.compile(r"\A(?:--[^\n]*\n)+")
_PLACEHOLDER = re.compile(r"\{(\w+)(?::(\w+))?\}")
_IDENTIFIER_BYTES_MAX = 63

TYPES_AS_TEXT = frozenset({"smallint", "integer", "bigint", "uuid"})
"""Types of sharding columns of which `array_text` writes arrays."""


def load(filename: str) -> dict[str, str]:
    """Read the statements of one .sql file of this folder, by name, in the order of the file."""
    text = resources.files(__package__).joinpath(filename).read_text(encoding="utf-8")
    parts = _NAME.split(text)
    return {name: body.strip() for name, body in zip(parts[1::2], parts[2::2], strict=True)}


def split_header(statement: str) -> tuple[str, str]:
    """Split a statement into the comment lines that stand above it, and the rest."""
    rest = without_header(statement)
    return statement.removesuffix(rest), rest


def without_header(statement: str) -> str:
    """Return a statement without the comment that stands above it."""
    return _HEADER.sub("", statement)


def is_identifier(name: str) -> bool:
    """Whether *name* can be a PostgreSQL identifier: 1 to 63 bytes, no NUL."""
    return 0 < len(name.encode()) <= _IDENTIFIER_BYTES_MAX and "\0" not in name


def quote(name: str) -> str:
    """
    Quote one identifier.

    Raises:
        ValueError: Not an identifier (empty, longer than 63 bytes, or with a NUL).
    """
    if not is_identifier(name):
        raise ValueError(f"not a PostgreSQL identifier: {name!r}")
    return '"' + name.replace('"', '""') + '"'


def quote_qualified(name: str) -> str:
    """Quote `table` or `schema.table`, splitting at the first full stop."""
    return ".".join(quote(part) for part in name.split(".", 1))


def literal(text: str) -> str:
    """
    Write a text as an SQL string, whatever `standard_conforming_strings` says.

    Only for SQL that is printed for people: what we run ourselves has its values bound.
    """
    quoted = "'" + text.replace("'", "''") + "'"
    return "E" + quoted.replace("\\", "\\\\") if "\\" in text else quoted


def array_text(numbers: Iterable[object]) -> str:
    """
    Write numbers (or uuids) as the text of an array, to be bound as a text and cast by the statement.

    The driver takes 0.16 µs for each element of a list, because it asks of each whether it is a list; this takes half.
    """
    return f"{{{','.join(map(str, numbers))}}}"


class Renderer:
    """
    Fills the placeholders of a statement.

    Args:
        names: Placeholders and their SQL, e.g. `table`, `schema`; a function gets what stands behind the colon.
        shard_columns: Sharding columns and their types, in order.

    Placeholders about the shard, with columns `shard_scope int4, shard_identifier int8`:

    | written            | becomes                                          |
    |--------------------|--------------------------------------------------|
    | `{shard}`          | `"shard_scope", "shard_identifier"`              |
    | `{shard:o}`        | `o."shard_scope", o."shard_identifier"`          |
    | `{shard_values:4}` | `$4::int4, $5::int8`                             |
    | `{shard_arrays:4}` | `$4::int4[], $5::int8[]`                         |
    | `{shard_texts:4}`  | `$4::text::int4[], $5::text::int8[]`; see below  |

    Columns of texts are arrays there, too: a text in an array's text would have to be quoted.
    """

    def __init__(self, names: Mapping[str, str | Callable[[str], str]], shard_columns: Mapping[str, str]) -> None:
        self._names = names
        self._shard = shard_columns

    def render(self, statement: str) -> str:
        """Fill in every placeholder; an unknown one is a programmer's error (KeyError)."""
        return _PLACEHOLDER.sub(self._fill, statement)

    def _fill(self, match: re.Match[str]) -> str:
        word, argument = match.groups()
        if word == "shard":
            prefix = f"{argument}." if argument else ""
            return ", ".join(prefix + quote(column) for column in self._shard)
        if word in ("shard_values", "shard_arrays"):
            suffix = "[]" if word == "shard_arrays" else ""
            return ", ".join(f"${int(argument) + i}::{type_}{suffix}" for i, type_ in enumerate(self._shard.values()))
        if word == "shard_texts":
            types = (f"text::{type_}" if type_ in TYPES_AS_TEXT else type_ for type_ in self._shard.values())
            return ", ".join(f"${int(argument) + i}::{type_}[]" for i, type_ in enumerate(types))
        filling = self._names[word]
        return filling if isinstance(filling, str) else filling(argument)
