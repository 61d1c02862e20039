"""Receivers of the database with all kinds of trouble (`tests.trouble`): some objects always fail, one is buried."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outboxd import Discard, receiver

if TYPE_CHECKING:
    from outboxd import Message

BROKEN = {31, 41, 231}
"""Objects that no receiver accepts."""
UNWANTED = {112}
"""Objects that are buried at once."""


@receiver("MEMBER", "TEAM", "AUDIT", "SKIPPING", "LIMITED", "PROFILE")
async def replicate(message: Message) -> None:
    """Accept whatever is not in the lists."""
    if message.object_identifier in UNWANTED:
        raise Discard("the organization is gone")
    if message.object_identifier in BROKEN or message.category_name == "LIMITED":
        raise ConnectionError(f"replica.example answers 503 for object {message.object_identifier}")
