"""Our style, as far as a program can see it."""

from __future__ import annotations

import ast
import io
import re
import tokenize
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from tests import source

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
PACKAGE = sorted((ROOT / "outboxd").rglob("*.py"))
TESTS = sorted((ROOT / "tests").rglob("*.py"))
BENCH = [path for path in (ROOT / "bench").rglob("*.py") if ".peers" not in path.parts]  # what peers are installed in
PYTHON = [*PACKAGE, *TESTS, *BENCH, *(ROOT / "examples").rglob("*.py")]
SQL = sorted((ROOT / "outboxd").rglob("*.sql"))

FUNCTION_LINES_MAX = 60
MODULE_LINES_MAX = 400
EMPTY_NAMES = {"utils", "util", "helpers", "helper", "common", "manager", "misc"}
MARKERS = re.compile(r"\b(TODO|FIXME|XXX)\b")
CITATION = re.compile(r"\bI([1-9]\d?)\b")
INVARIANT = re.compile(r"^- \*\*I(\d+)\b", re.MULTILINE)
MAY_SLEEP = {ROOT / "tests" / "eventually.py"}

every_python_file = pytest.mark.parametrize("path", PYTHON, ids=lambda path: str(path.relative_to(ROOT)))
every_module = pytest.mark.parametrize("path", PACKAGE, ids=lambda path: str(path.relative_to(ROOT)))
every_test = pytest.mark.parametrize("path", TESTS, ids=lambda path: str(path.relative_to(ROOT)))


def nodes(path: Path) -> Iterator[ast.AST]:
    return ast.walk(source.tree(path.read_text("utf-8")))


@every_python_file
def test_functions_are_short(path: Path) -> None:
    for node in nodes(path):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            assert node.end_lineno is not None
            lines = node.end_lineno - node.lineno + 1
            assert lines <= FUNCTION_LINES_MAX, f"{path}:{node.lineno}: {node.name} has {lines} lines"


@every_module
def test_modules_are_short_and_say_what_they_are_for(path: Path) -> None:
    text = path.read_text("utf-8")
    assert len(text.splitlines()) <= MODULE_LINES_MAX
    assert ast.get_docstring(source.tree(text)), f"{path} has no docstring"


@every_python_file
def test_modules_are_named_by_their_subject(path: Path) -> None:
    assert not EMPTY_NAMES & {path.stem, path.parent.name}


@every_python_file
def test_no_unfinished_business(path: Path) -> None:
    for token in tokenize.generate_tokens(io.StringIO(path.read_text("utf-8")).readline):
        if token.type == tokenize.COMMENT:
            assert not MARKERS.search(token.string), f"{path}:{token.start[0]}: {token.string}"


@every_test
def test_tests_do_not_sleep(path: Path) -> None:
    """`asyncio.sleep(0)` only lets others run; everything else waits with `eventually` or for an event."""
    if path in MAY_SLEEP:
        return
    for node in nodes(path):
        if isinstance(node, ast.Call) and is_sleep(node.func):
            zero = bool(node.args) and isinstance(node.args[0], ast.Constant) and node.args[0].value == 0
            assert zero, f"{path}:{node.lineno}: a test sleeps"


def is_sleep(function: ast.expr) -> bool:
    if isinstance(function, ast.Attribute):
        owner = function.value
        modules = {"time", "asyncio", "anyio"}
        return function.attr == "sleep" and isinstance(owner, ast.Name) and owner.id in modules
    return isinstance(function, ast.Name) and function.id == "sleep"


def test_statements_have_no_unfinished_business() -> None:
    marked = [
        f"{path.name}: {line}" for path in SQL for line in path.read_text("utf-8").splitlines() if MARKERS.search(line)
    ]
    assert marked == []


def test_cited_invariants_exist() -> None:
    cited = {int(number) for path in [*PACKAGE, *SQL] for number in CITATION.findall(path.read_text("utf-8"))}
    if cited:
        numbered = [int(number) for number in INVARIANT.findall((ROOT / "ARCHITECTURE.md").read_text("utf-8"))]
        assert numbered == list(range(1, len(numbered) + 1)), "the invariants are not numbered 1, 2, 3 …"
        assert cited <= set(numbered)
