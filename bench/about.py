"""What was measured, and on what machine."""

from __future__ import annotations

import os
import platform
import subprocess
from importlib import metadata
from pathlib import Path

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
