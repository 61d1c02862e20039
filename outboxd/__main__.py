"""`outboxd` and `python -m outboxd`."""

from __future__ import annotations

import sys

from outboxd import commands


def main() -> None:
    """Run the command line of this process and exit with its code."""
    sys.exit(commands.run())


if __name__ == "__main__":
    main()
