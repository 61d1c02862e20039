"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import contextlib
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator


def rounds(text: str) -> int:
    """Read how often each figure is measured: at least once."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number of rounds") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} rounds measure nothing")
    return number


def result_file(text: str) -> Path:
    """
    Read where to write JSON, and make the directory: what cannot be written must not be found out after an hour.

    Raises:
        ArgumentTypeError: It cannot be written, or would be overwritten by the Markdown beside it.
    """
    path = Path(text)
    if path.suffix != ".json":
        raise argparse.ArgumentTypeError(f"{text} does not end in .json")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as exc:
        raise argparse.ArgumentTypeError(f"there is no directory {path.parent}: {exc.strerror}") from exc
    for each in (path, path.with_suffix(".md")):
        if not os.access(each if each.exists() else each.parent, os.W_OK) or each.is_dir():
            raise argparse.ArgumentTypeError(f"{each} cannot be written")
    return path


@contextlib.contextmanager
def ended_by_hand() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM end the program, and with it the servers and processes it started, without a traceback."""
    ended_by = signal.SIGINT

    def interrupt(number: int, _: object) -> None:
        nonlocal ended_by
        ended_by = signal.Signals(number)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script put into the background
    try:
        yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + ended_by) from None
