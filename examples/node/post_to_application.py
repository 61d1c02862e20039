"""The receiver: it passes each message on to an HTTP endpoint, here the application's own."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import aiohttp

from outboxd import RetryLater, receiver

if TYPE_CHECKING:
    from outboxd import Message


@receiver("ORDER_PLACED")
async def post(message: Message) -> None:
    """POST the message. By the id the endpoint knows what it has had before; 429 is tried again when it says."""
    document = {"id": message.id, "customer": message.shard_identifier, **message.payload}
    async with aiohttp.ClientSession() as client, client.post(os.environ["EVENTS_URL"], json=document) as answer:
        if answer.status == 429:
            raise RetryLater(float(answer.headers.get("Retry-After", 5)))
        answer.raise_for_status()
