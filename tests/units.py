"""The unit files of systemd/, read as systemd reads them: what a test needs to run their command lines."""

from __future__ import annotations

import re
import shlex
from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parent.parent
FOLDER = ROOT / "systemd"
PROGRAM = "/usr/local/bin/outboxd"


@dataclass(frozen=True)
class Directive:
    """`about` is the comment right above it, empty when there is none."""

    section: str
    name: str
    value: str
    about: str


class Unit:
    """
    One unit file.

    Args:
        name: With the instance where the file is a template: `outboxd@9465.service`.
    """

    def __init__(self, name: str) -> None:
        stem, at, rest = name.partition("@")
        self.name = name
        self.instance, _, kind = rest.rpartition(".") if at else ("", "", "")
        self.path = FOLDER / (f"{stem}@.{kind}" if at else name)
        self.directives = list(_directives(self.path.read_text("utf-8")))
        self._values: dict[tuple[str, str], list[str]] = defaultdict(list)
        for directive in self.directives:
            self._values[directive.section, directive.name].append(directive.value)

    def all(self, section: str, name: str) -> list[str]:
        return self._values[section, name]

    def one(self, section: str, name: str) -> str:
        """The only value; fails where there is none or several."""
        (value,) = self._values[section, name]
        return value

    def environment(self, credentials: str) -> dict[str, str]:
        """What `Environment=` sets, with systemd's specifiers filled in."""
        found = {}
        for value in self.all("Service", "Environment"):
            for assignment in shlex.split(value):
                variable, _, content = assignment.partition("=")
                found[variable] = content.replace("%d", credentials).replace("%i", self.instance)
        assert not re.search("%[a-zA-Z]", "".join(found.values())), "a specifier that a test does not know"
        return found

    def arguments(self) -> list[str]:
        """What ExecStart gives to outboxd."""
        program, *arguments = shlex.split(self.one("Service", "ExecStart"))
        assert program == PROGRAM
        return arguments


def _directives(text: str) -> list[Directive]:
    found, section, comment = [], "", ""
    for line in text.splitlines():
        if line.startswith("#"):
            comment = f"{comment}\n{line[1:].strip()}".strip()
            continue
        if line.startswith("["):
            section = line.strip("[]")
        elif line:
            name, equals, value = line.partition("=")
            assert equals, line
            found.append(Directive(section, name, value, comment))
        comment = ""
    return found
