"""The one place where names become SQL: what is a name, and that quoting cannot be escaped from."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd import sql

NAMES = st.text(min_size=1, max_size=63).filter(sql.is_identifier)


@pytest.mark.parametrize("name", ["a", "Outbox", 'we"ird', "a.b", " ", "x" * 63, "ä" * 31, "'; DROP TABLE t; --"])
def test_one_to_63_bytes_without_nul_are_a_name(name: str) -> None:
    assert sql.is_identifier(name)


@pytest.mark.parametrize("name", ["", "x" * 64, "ä" * 32, "a\0b", "\0"])
def test_everything_else_is_refused(name: str) -> None:
    assert not sql.is_identifier(name)
    with pytest.raises(ValueError, match="not a PostgreSQL identifier"):
        sql.quote(name)


@given(NAMES)
def test_a_quoted_name_reads_back_as_itself_and_ends_nowhere_else(name: str) -> None:
    quoted = sql.quote(name)
    inside = quoted[1:-1]

    assert quoted[0] == quoted[-1] == '"'
    assert inside.replace('""', "").count('"') == 0
    assert inside.replace('""', '"') == name


@pytest.mark.parametrize(
    ("name", "quoted"),
    [("outbox", '"outbox"'), ("app.outbox", '"app"."outbox"'), ('a"b.c', '"a""b"."c"'), ("Out", '"Out"')],
)
def test_schema_and_table_are_quoted_apart(name: str, quoted: str) -> None:
    assert sql.quote_qualified(name) == quoted


@pytest.mark.parametrize("name", ["", ".a", "a."])
def test_an_empty_part_of_a_qualified_name_is_refused(name: str) -> None:
    with pytest.raises(ValueError, match="not a PostgreSQL identifier"):
        sql.quote_qualified(name)


RENDERER = sql.Renderer({"table": '"t"'}, {"shard_scope": "int4", "shard_identifier": "int8"})


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("SELECT {shard} FROM {table}", 'SELECT "shard_scope", "shard_identifier" FROM "t"'),
        ("{shard:o}", 'o."shard_scope", o."shard_identifier"'),
        ("{shard_values:4}", "$4::int4, $5::int8"),
        ("{shard_arrays:1}", "$1::int4[], $2::int8[]"),
        ("'{}'::jsonb", "'{}'::jsonb"),
    ],
)
def test_placeholders_are_filled_in(statement: str, expected: str) -> None:
    assert RENDERER.render(statement) == expected


def test_an_unknown_placeholder_is_a_programmers_error() -> None:
    with pytest.raises(KeyError):
        RENDERER.render("{nothing}")


@pytest.mark.parametrize(
    ("header", "rest"),
    [
        ("-- One.\n-- Two.\n", "SELECT 1\n-- in the middle\nFROM t"),
        ("", "SELECT 1"),
        ("-- Nothing but this.\n", ""),
    ],
)
def test_a_statement_falls_into_its_header_and_the_rest(header: str, rest: str) -> None:
    assert sql.split_header(header + rest) == (header, rest)
    assert sql.without_header(header + rest) == rest
