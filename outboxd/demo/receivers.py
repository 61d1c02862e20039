"""
The demo's receivers: what is done with each message.

They only wait for a few milliseconds, as calls on other systems do. The one for members fails now and then.
"""

from __future__ import annotations

import asyncio
import random

from outboxd import Message, receiver

_dice = random.Random()  # noqa: S311  a play, not a cipher

FAILING_SHARE = 0.01
ATTEMPTS_NEEDED = (2, 3, 4)

_needed: dict[int, int] = {}


@receiver("ORDER_UPDATE")
async def update_search_index(message: Message) -> None:
    """Bring one order up to date; of many changes that wait together only the newest arrives here."""
    await _call_another_system()


@receiver("ORDER_PAID")
async def book_payment(message: Message) -> None:
    """Book one payment; this category does not coalesce, so each one arrives."""
    await _call_another_system()


@receiver("MEMBER_UPDATE")
async def sync_mailing_list(message: Message) -> None:
    """
    Tell the mailing list about a member. Raising keeps the message and has it tried again in 2, 4, 8 ... s.

    For a few members the mailing list is out of order until the second, third or fourth attempt.
    """
    await _call_another_system()
    member = int(message.object_identifier)
    if message.attempt == 1 and _dice.random() < FAILING_SHARE:
        _needed[member] = _dice.choice(ATTEMPTS_NEEDED)
    if message.attempt < _needed.get(member, 0):
        raise ConnectionError("mailing list: 503 Unavailable")
    _needed.pop(member, None)


async def _call_another_system() -> None:
    await asyncio.sleep(_dice.uniform(0.002, 0.006))
