"""The tables of docs/operations.md: what the log can say, what sessions are called, and the keys of the summary."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path
from typing import TYPE_CHECKING

from outboxd import claims, errors, once
from tests import source

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
DOCUMENT = (ROOT / "docs" / "operations.md").read_text("utf-8")
LEVELS = {"debug", "info", "warning", "error", "critical", "exception"}
WORDS = re.compile(r"`([^`]+)`")
OPENERS = {"connect", "visit", "Session", "opened", "source_session", "own"}
OF_THE_DEMO = {"outboxd: shop", "outboxd: watch"}
"""Sessions of the application that the demo plays, and of who looks at it."""


@dataclasses.dataclass(frozen=True)
class Event:
    level: str
    keys: frozenset[str]


def rows(heading: str, document: Path | None = None) -> Iterator[list[str]]:
    """The cells of the first table whose first column is called `heading`, in this document or another."""
    lines = iter((document.read_text("utf-8") if document else DOCUMENT).splitlines())
    for line in lines:
        if line.startswith(f"| {heading} |"):
            next(lines)
            break
    for line in lines:
        if not line.startswith("|"):
            return
        yield [cell.strip() for cell in line.strip("|").split("|")]


def documented() -> dict[str, Event]:
    return {
        WORDS.findall(name)[0]: Event(level, frozenset(WORDS.findall(keys)))
        for name, level, keys, _meaning in rows("event")
    }


def logged() -> Iterator[tuple[str, str, set[str], str]]:
    """Event, level, keys that are written out, and place, of every call of a logger in the package."""
    for path in sorted((ROOT / "outboxd").rglob("*.py")):
        for node in ast.walk(source.tree(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and is_logger(node.func) and node.args:
                assert isinstance(node.func, ast.Attribute)
                keys = {keyword.arg for keyword in node.keywords if keyword.arg is not None}
                for name in names(node.args[0]):
                    yield name, node.func.attr, keys, f"{path.relative_to(ROOT)}:{node.lineno}"


def is_logger(function: ast.expr) -> bool:
    if not isinstance(function, ast.Attribute) or function.attr not in LEVELS:
        return False
    return isinstance(function.value, ast.Name) and function.value.id in {"log", "_log"}


def names(first: ast.expr) -> list[str]:
    """The event, or both of `"one" if … else "other"`."""
    if isinstance(first, ast.IfExp):
        return names(first.body) + names(first.orelse)
    assert isinstance(first, ast.Constant), ast.dump(first)
    assert isinstance(first.value, str)
    return [first.value]


def test_the_table_of_events_is_complete_and_true() -> None:
    table = documented()
    found = list(logged())

    assert {name for name, *_ in found} == set(table)
    for name, level, keys, place in found:
        assert level.replace("exception", "error") == table[name].level, f"{place}: {name}"
        assert keys <= table[name].keys, f"{place}: {name}"


def test_the_table_of_events_is_in_order() -> None:
    names_in_order = list(documented())

    assert names_in_order == sorted(names_in_order)


def test_counts_are_those_of_the_pipeline() -> None:
    tree = source.tree((ROOT / "outboxd" / "pipeline.py").read_text("utf-8"))
    totals = next(n for n in ast.walk(tree) if isinstance(n, ast.FunctionDef) and n.name == "totals")
    returned = next(n for n in ast.walk(totals) if isinstance(n, ast.Dict))
    counts = {key.value for key in returned.keys if isinstance(key, ast.Constant)}

    assert documented()["drain.summary"].keys == counts
    assert documented()["daemon.stopped"].keys == counts | {"hard"}


def test_every_exit_code_of_an_error_is_in_the_table() -> None:
    codes = {int(row[0]) for row in rows("code")}
    kinds = [
        value for value in vars(errors).values() if isinstance(value, type) and value.__module__ == errors.__name__
    ]

    assert {kind.exit_code for kind in kinds if issubclass(kind, errors.OutboxdError)} <= codes


def test_the_keys_of_the_summary_are_in_the_table() -> None:
    assert [WORDS.findall(row[0])[0] for row in rows("key")] == [f.name for f in dataclasses.fields(once.Summary)]


def test_sessions_are_called_as_the_table_says() -> None:
    called = {word for row in rows("`application_name`") for word in WORDS.findall(row[0])}

    found = {name for path in (ROOT / "outboxd").rglob("*.py") for name in sessions(path)}
    assert called == found - OF_THE_DEMO


def sessions(path: Path) -> Iterator[str]:
    """What a module calls the sessions that it opens."""
    for node in ast.walk(source.tree(path.read_text("utf-8"))):
        if not isinstance(node, ast.Call) or ast.unparse(node.func).rpartition(".")[2] not in OPENERS:
            continue
        for keyword in node.keywords:
            if keyword.arg == "name" and isinstance(keyword.value, ast.Constant | ast.JoinedStr):
                yield "outboxd: " + re.sub(r"\{.*\}", "NAME", ast.unparse(keyword.value).lstrip("f").strip("'"))


def test_the_lock_class_in_the_example_is_that_of_shards() -> None:
    assert f"classid = {claims.SHARD_CLASS}" in DOCUMENT
