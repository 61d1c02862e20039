"""Command lines that are printed to be copied: whatever an identifier holds, the shell and we read it as it is."""

from __future__ import annotations

import math
import shlex

from outboxd import option_keys
from outboxd.display import seconds_between


def line(verb: str, *arguments: object, **options: str | None) -> str:
    """
    Write a command line.

    Args:
        verb: As it is typed; may have flags.
        arguments: Behind the options, and behind `--` where one begins with a dash.
        options: By name, each with its value; None: left out.
    """
    words = [f"outboxd {verb}", *(_option(name, value) for name, value in options.items() if value is not None)]
    texts = [str(argument) for argument in arguments]
    if any(text.startswith("-") for text in texts):
        words.append("--")
    return " ".join([*words, *map(_quoted, texts)])


def lifting(
    key: str, value: str, off: str, *, now: str, reason: str | None = None, expires_at: str | None = None
) -> str:
    """
    Write the command that takes one entry out of an option's list; out of a list of one, the option is unset.

    The other entries stay as they are written. Where the list cannot be taken apart, the command that shows it.

    Args:
        key: Of the option.
        value: Its list, JSON; empty where it is gone meanwhile.
        off: The entry: an identifier in any spelling, or a name.
        now: As JSON has it.
        reason: Of the list; the other entries keep it,
        expires_at: and its end.
    """
    items = option_keys.entries(value)
    if items is None:
        return line("options get", key)
    left = [item for item in items if option_keys.canonical(option_keys.parse(item)) != option_keys.canonical(off)]
    left_s = math.inf if expires_at is None else seconds_between(now, expires_at)
    expires = f"{max(1, round(left_s))}s" if math.isfinite(left_s) else None
    options = {"reason": reason or None, "expires": expires}
    return line("options set", key, f"[{', '.join(left)}]", **options) if left else line("options unset", key)


def _option(name: str, value: str) -> str:
    return f"--{name.replace('_', '-')}{'=' if value.startswith('-') else ' '}{_quoted(value)}"


def _quoted(text: str) -> str:
    """Quote for a shell; what a terminal would obey or not show is written as bash, zsh and newer sh spell it."""
    if text.isprintable():
        return shlex.quote(text)
    return "$'" + "".join(_escaped(character) for character in text) + "'"


def _escaped(character: str) -> str:
    if character.isprintable():
        return f"\\{character}" if character in "\\'" else character
    return f"\\x{ord(character):02x}" if character.isascii() else f"\\U{ord(character):08x}"
