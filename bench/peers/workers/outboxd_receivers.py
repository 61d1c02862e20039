"""What the daemon delivers to. Its log says when it is ready."""

from __future__ import annotations

from typing import TYPE_CHECKING

import worker

from outboxd import receiver

if TYPE_CHECKING:
    from outboxd.model import Message

if worker.TIMED:

    @receiver("ACCOUNT_UPDATE")
    async def tell(message: Message) -> None:
        worker.ran(message.object_identifier)

else:

    @receiver("ACCOUNT_UPDATE")
    async def accept(message: Message) -> None:
        """Do nothing."""
