"""What was measured, and on what machine."""

from __future__ import annotations

import functools
import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

ROOT = Path(__file__).parent.parent
MEASURED = ("outboxd", "bench", "pyproject.toml")
LIBRARIES = ("asyncpg", "uvloop", "msgspec")


def machine() -> str:
    """Name processors, system, Python, and the libraries on which the speed depends most."""
    versions = ", ".join(f"{name} {metadata.version(name)}" for name in LIBRARIES)
    system = f"{platform.system()} {platform.release()}"
    return f"{os.cpu_count()} processors ({_processor()}), {system}, Python {platform.python_version()}, {versions}"


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    return next((line.split(":")[1].strip() for line in lines if line.startswith("model name")), platform.machine())


@functools.cache
def commit() -> str:
    """
    Name the commit of this checkout, and say so when what runs differs from it; `unknown` without git.

    Asked once: what is committed while a benchmark runs is not what it measures.
    """
    try:
        name = _git("rev-parse", "--short=12", "HEAD")
        return f"{name} with changes" if _git("status", "--porcelain", "--", *MEASURED) else name
    except (OSError, subprocess.CalledProcessError):
        return "unknown"


def _git(*arguments: str) -> str:
    return subprocess.run(["git", *arguments], cwd=ROOT, check=True, capture_output=True, text=True).stdout.strip()
