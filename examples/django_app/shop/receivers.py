"""What others are told. Used by the application, when it flushes, and by the daemon."""

from __future__ import annotations

import os
import sys
from typing import TYPE_CHECKING

from outboxd.contrib.django import receiver

if TYPE_CHECKING:
    from outboxd import Message


@receiver("PLAN_UPDATE", "INVOICE")
def tell(message: Message) -> None:
    """Print what a real one would send: a request to another service, say, with `message.id` for idempotence."""
    who = os.environ.get("ROLE", "the daemon")
    line = f"{who} delivers {message.category_name} of account {message.shard_identifier}: {message.payload}"
    print(line, file=sys.stderr, flush=True)
