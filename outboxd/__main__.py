"""`outboxd` and `python -m outboxd`."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Sequence

from outboxd import commands, display


def main(arguments: Sequence[str] | None = None) -> None:
    """Run a command line, by default that of this process, and exit with its code."""
    _open_what_is_closed()
    code = commands.run(arguments)
    display.flush()
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        os._exit(code)  # a receiver that was given up still runs in a thread, and Python would wait for it
    sys.exit(code)


def _open_what_is_closed() -> None:
    """Lead streams that were closed before we started to nowhere: else a connection would get their descriptor."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115


if __name__ == "__main__":
    main()
