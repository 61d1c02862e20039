"""
Command lines of outboxd, as they stand in documents, files and hints: found, and parsed without being run.

Words in capitals (`SCOPE`, `ID`) stand for something. `[…]` is what may be left out, `a|b` one or the other.
"""

from __future__ import annotations

import ast
import itertools
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import click

from outboxd import commands
from tests import source

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PLACEHOLDER = "PLACEHOLDER"
_SPAN = re.compile(r"`(outboxd(?:\s[^`]*)?)`")
_SHORT = re.compile(rf"`((?:{'|'.join(commands.COMMANDS)}) [^`]+)`")
_BLOCK = re.compile(r"^```(console|sh)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
_IN_SHELL = re.compile(r"(?:^|[$;&|(] *|\bwatch )(outboxd(?: [^;&|#\n>)]*)?)", re.MULTILINE)
_BARE = re.compile(r"(?:^|: |-> )(outboxd [^`\n]+)$", re.MULTILINE)
_TEMPLATED = re.compile(r"\{\{.*?\}\}")
_STANDS_FOR_SOMETHING = re.compile(r"[A-Z][A-Z_@]*…?|.*PLACEHOLDER.*")


@dataclass(frozen=True)
class Line:
    """A command line, where it stands, and whether it is meant to be typed as it stands."""

    text: str
    place: str
    is_whole: bool = False


def leaves() -> dict[str, click.Command]:
    """Every command, with its sub-commands instead of itself where it has any: `options list`; in the table's order."""
    found: dict[str, click.Command] = {}
    for name in commands.COMMANDS:
        command = commands.cli.get_command(click.Context(commands.cli), name)
        assert command is not None
        if isinstance(command, click.Group):
            found |= {f"{name} {sub}": each for sub, each in command.commands.items()}
        else:
            found[name] = command
    return found


def in_document(path: Path) -> Iterator[Line]:
    """Those of a document: in its blocks, and in backticks, there also without the program's name."""
    text = path.read_text("utf-8")
    for language, block in _BLOCK.findall(text):
        typed = block if language == "sh" else "\n".join(re.findall(r"^\$ (.*)$", block, re.MULTILINE))
        yield from (Line(found, path.name, is_whole=True) for found in _IN_SHELL.findall(typed))
    prose = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    yield from (Line(found, path.name) for found in _SPAN.findall(prose))
    yield from (Line(f"outboxd {found}", path.name) for found in _SHORT.findall(prose))


def in_text(path: Path) -> Iterator[Line]:
    """Those in backticks in any other file, such as a rule of Prometheus."""
    yield from (Line(found, path.name) for found in _SPAN.findall(path.read_text("utf-8")))


def in_code(path: Path) -> Iterator[Line]:
    """Those in texts of a module, and those that it has `command_line` write: hints and remedies."""
    tree = source.tree(path.read_text("utf-8"))
    for call in (node for node in ast.walk(tree) if isinstance(node, ast.Call)):
        yield from (Line(text, f"{path.name}:{call.lineno}") for text in _written(call))
    apart = {id(part) for node in ast.walk(tree) for part in _parts(node)}
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr | ast.Constant) and id(node) not in apart:
            text = _text_of(node)
            place = f"{path.name}:{node.lineno}"
            yield from (Line(found, place) for found in _SPAN.findall(text) + _BARE.findall(text))


def _written(call: ast.Call) -> Iterator[str]:
    """Yield what a call of `line(verb, *arguments, **options)` writes, with placeholders for what it is given."""
    name = call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")
    if name not in ("line", "command") or not call.args or not isinstance(call.args[0], ast.Constant):
        return
    options = [f"--{each.arg.replace('_', '-')} {PLACEHOLDER}" for each in call.keywords if each.arg]
    arguments = [PLACEHOLDER] * (len(call.args) - 1)
    yield " ".join(["outboxd", str(call.args[0].value), *options, *arguments])


def _parts(node: ast.AST) -> list[ast.expr]:
    """Return what is no text of its own: the pieces of an f-string, and docstrings, which nobody types."""
    if isinstance(node, ast.JoinedStr):
        return node.values
    return [node.value] if isinstance(node, ast.Expr) else []


def _text_of(node: ast.expr) -> str:
    if isinstance(node, ast.JoinedStr):
        text = ""
        for part in node.values:  # what is glued to a word is an option that may be there
            text += "" if isinstance(part, ast.FormattedValue) and text[-1:].isalpha() else _text_of(part)
        return text
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else ""
    return PLACEHOLDER


def problem(line: Line) -> str:
    """Tell what outboxd would say of a command line; empty when it would understand it."""
    return next(filter(None, (_problem(words, is_whole=line.is_whole) for words in _spelled_out(line.text))), "")


def _spelled_out(text: str) -> Iterator[list[str]]:
    """Yield a list of words for each of its alternatives, without the program's name and what may be left out."""
    text = _TEMPLATED.sub(PLACEHOLDER, text)
    words = shlex.split(text if "'" in text else re.sub(r"[\[\]]", "", text))[1:]
    for chosen in itertools.product(*(re.split(r"(?<=\w)\|(?=\w)", word) for word in words)):
        yield [word for word in chosen if word not in ("…", "...")]


def _problem(words: list[str], *, is_whole: bool) -> str:
    try:
        _parse(commands.cli, "outboxd", words, None)
    except click.exceptions.Exit:  # --help, --version
        return ""
    except click.UsageError as exc:
        excused = _is_unfinished(exc, words) and not is_whole
        return "" if excused or _is_for_a_placeholder(exc, words) else f"{' '.join(words)}: {exc.format_message()}"
    return ""


def _is_unfinished(exc: click.UsageError, words: list[str]) -> bool:
    """Whether only something is missing at the end: a text may speak of `outboxd options`, or of `bury ID --reason`."""
    cut = isinstance(exc, click.BadOptionUsage) and words[-1] == exc.option_name
    return cut or isinstance(exc, click.MissingParameter | click.exceptions.NoArgsIsHelpError)


def _is_for_a_placeholder(exc: click.UsageError, words: list[str]) -> bool:
    """Whether it complains of a word that only stands for something: ID is no number, COMMAND no command."""
    if isinstance(exc, click.BadParameter) and not isinstance(exc, click.MissingParameter):
        return any(map(_STANDS_FOR_SOMETHING.fullmatch, words))
    return bool(_STANDS_FOR_SOMETHING.fullmatch(words[0])) and "no command" in exc.format_message()


def _parse(command: click.Command, name: str, words: list[str], parent: click.Context | None) -> None:
    """Parse, and let the sub-command parse what is left to it; runs nothing."""
    context = command.make_context(name, list(words), parent=parent)
    if not isinstance(command, click.Group):
        return
    rest = [*context._protected_args, *context.args]
    if rest:
        sub, subcommand, left = command.resolve_command(context, rest)
        assert subcommand is not None
        _parse(subcommand, sub or "", left, context)
