"""Processes that do not outlive the benchmark, even where that is killed."""

from __future__ import annotations

import functools
import subprocess

TIED = ("setpriv", "--pdeathsig", "KILL")


def command(*argv: str) -> tuple[str, ...]:
    """Return the command line that ends with this process: where Linux can, and its `setpriv` is there."""
    return (*TIED, *argv) if _can_tie() else argv


@functools.cache
def _can_tie() -> bool:
    try:
        return not subprocess.run([*TIED, "true"], capture_output=True, check=False).returncode
    except OSError:
        return False
