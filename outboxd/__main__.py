"""`outboxd` and `python -m outboxd`."""

from __future__ import annotations

import os
import sys
import threading

from outboxd import commands


def main() -> None:
    """Run the command line of this process and exit with its code."""
    code = commands.run()
    for stream in (sys.stdout, sys.stderr):
        if stream is not None:
            stream.flush()
    if any(not thread.daemon and thread is not threading.main_thread() for thread in threading.enumerate()):
        os._exit(code)  # a receiver that was given up still runs in a thread, and Python would wait for it
    sys.exit(code)


if __name__ == "__main__":
    main()
