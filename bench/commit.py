"""Which outboxd was measured."""

from __future__ import annotations

import subprocess
from pathlib import Path


def commit() -> str:
    """Name the commit of this checkout, and say so when files differ from it; `unknown` without git."""
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return f"{name} with changes" if _git("status", "--porcelain", "--untracked-files=no") else name
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    folder = Path(__file__).parent
    return subprocess.run(["git", *arguments], cwd=folder, check=True, capture_output=True, text=True).stdout.strip()
