"""outboxd: the real daemon, `python -m outboxd`, which this process becomes."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

HERE = Path(__file__).parent
ROOT = HERE.parent.parent.parent


def main() -> None:
    settings = json.loads(sys.argv[2])
    arguments = ["-m", "outboxd", "--config", str(HERE / "outboxd.toml")]
    if sys.argv[1] == "setup":
        arguments += ["migrate", *(["--notify"] if settings["notify"] else [])]
    paths = os.pathsep.join([str(ROOT), str(HERE)])
    os.execve(sys.executable, [sys.executable, *arguments], {**os.environ, "PYTHONPATH": paths})


main()
