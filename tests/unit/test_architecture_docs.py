"""The table of modules in ARCHITECTURE.md."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent


def test_every_module_stands_in_the_table_once() -> None:
    text = (ROOT / "ARCHITECTURE.md").read_text("utf-8")
    section = text[text.index("## Modules") : text.index("## Sessions")]
    first_cells = [line.split("|")[1] for line in section.splitlines() if line.startswith("| `")]
    listed = [name for cell in first_cells for name in re.findall(r"`([a-z_]+)/?`", cell)]

    package = ROOT / "outboxd"
    modules = [path.stem for path in package.glob("*.py") if path.stem != "__init__"]
    folders = [path.parent.name for path in package.glob("*/__init__.py")]
    assert sorted(listed) == sorted(modules + folders)
