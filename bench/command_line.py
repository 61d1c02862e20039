"""What the command lines of the benchmarks have in common."""

from __future__ import annotations

import argparse
import contextlib
import signal
import sys
from typing import TYPE_CHECKING

from bench.errors import TROUBLE, described

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator


def rounds(text: str) -> int:
    """Read how often each figure is measured: at least once."""
    try:
        number = int(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text} is not a number of rounds") from None
    if number < 1:
        raise argparse.ArgumentTypeError(f"{number} rounds measure nothing")
    return number


def chosen(parser: argparse.ArgumentParser, names: list[str], known: Iterable[str]) -> list[str]:
    """Return the names that were given, each once, or all where none was; end with an error where one is unknown."""
    if unknown := set(names) - set(known):
        parser.error(f"there is no {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    return list(dict.fromkeys(names)) or list(known)


@contextlib.contextmanager
def without_traceback() -> Iterator[None]:
    """
    Let what may be expected end the program with a line, and whatever it started with it.

    That is Ctrl-C, SIGTERM, SIGHUP (unless under nohup), a server that cannot be had, and a measure that fails.
    """
    ended_by = signal.SIGINT

    def interrupt(number: int, _: object) -> None:
        nonlocal ended_by
        ended_by = signal.Signals(number)
        signal.raise_signal(signal.SIGINT)

    signal.signal(signal.SIGTERM, interrupt)
    if signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:
        signal.signal(signal.SIGHUP, interrupt)
    signal.signal(signal.SIGINT, signal.default_int_handler)  # ignored in what a script put into the background
    try:
        with failing_by_a_line():
            yield
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        raise SystemExit(128 + ended_by) from None


@contextlib.contextmanager
def failing_by_a_line() -> Iterator[None]:
    """Let trouble that nothing inside has dealt with end the program with exit code 1."""
    try:
        yield
    except* TROUBLE as group:
        raise SystemExit(described(group)) from None
