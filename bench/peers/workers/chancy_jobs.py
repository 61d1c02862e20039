"""What Chancy runs: it imports jobs by their names, in processes of its own at its defaults."""

from __future__ import annotations

import worker


async def handle_async(*, n: int) -> None:
    worker.ran(n)


def handle(*, n: int) -> None:
    worker.ran(n)
