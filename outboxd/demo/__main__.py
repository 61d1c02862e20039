"""
`python -m outboxd.demo ARGUMENTS` is `outboxd ARGUMENTS`, as the demo starts it.

It differs in two things: the summary that the daemon logs once a minute comes four times a second, and it ends when
its standard input does, so that it does not outlive a demo that was killed.
"""

from __future__ import annotations

import os
import runpy
import signal
import threading
import time

from outboxd import main

SUMMARY_INTERVAL_S = 0.25
LAST_WORDS_S = 5.0


def _end_with_parent() -> None:
    while os.read(0, 1024):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_WORDS_S)
    os._exit(1)


if __name__ == "__main__":
    main.SUMMARY_INTERVAL_S = SUMMARY_INTERVAL_S
    threading.Thread(target=_end_with_parent, name="parent", daemon=True).start()
    runpy.run_module("outboxd", run_name="__main__", alter_sys=True)
