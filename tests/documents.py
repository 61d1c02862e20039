"""The project's own documents."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parent.parent

FOLDERS = ("bench", "deploy", "docs", "examples", "systemd")
INSTALLED = {"node_modules", ".peers"}  # other people's, once the example or the benchmarks ran

DOCUMENTS = sorted(
    path
    for path in [*ROOT.glob("*.md"), *(path for name in FOLDERS for path in (ROOT / name).rglob("*.md"))]
    if not INSTALLED.intersection(path.parts)
)
