"""What the shop's messages are delivered to."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from outboxd.contrib.django import receiver, replicating
from tests.integration.django.shop.models import Account, Plain

if TYPE_CHECKING:
    from outboxd import Message

seen: list[Message] = []
read: list[str] = []
threads: set[int] = set()
broken: set[object] = set()
"""Objects whose delivery fails."""


def _take(message: Message) -> None:
    threads.add(threading.get_ident())
    if message.object_identifier in broken:
        raise ValueError(f"object {message.object_identifier} is broken")
    seen.append(message)
    read.extend(Plain.objects.filter(pk=message.object_identifier).values_list("slug", flat=True))


@receiver("TEAM")
def team(message: Message) -> None:
    _take(message)


replicate_account = replicating(Account)


def forget() -> None:
    for each in (seen, read, threads, broken, Account.told):
        each.clear()


def objects() -> list[object]:
    return [message.object_identifier for message in seen]


def shards() -> list[object]:
    return [message.shard_identifier for message in seen]
