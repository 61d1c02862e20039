"""How much is measured."""

from __future__ import annotations

import dataclasses
import sys


@dataclasses.dataclass(frozen=True)
class Options:
    """
    What the command line asks for.

    Args:
        rounds: How often each figure is measured, beside a first round that is not counted.
        quick: Smaller loads, for a look in two minutes.
    """

    rounds: int = 5
    quick: bool = False

    def say(self, text: str) -> None:
        """Show how far it is."""
        print(text, file=sys.stderr, flush=True)

    def scaled(self, number: int, factor: int = 10) -> int:
        """Return *number*, or a share of it in a quick run."""
        return max(1, number // factor) if self.quick else number
