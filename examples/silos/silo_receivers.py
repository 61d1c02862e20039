"""
Receivers of both silos: each says on stderr what a real one would send to the other side.

A message can arrive twice and, after a lost connection, an older one beside a newer one. So a real receiver keeps
the greatest `message.id` that it has applied to an object, beside the object, and ignores what is not above it.
"""

import sys

from outboxd import Discard, Message, receiver


@receiver("ORGANIZATION_UPDATE", "ORGANIZATION_MEMBER_UPDATE")
async def replicate_to_control(message: Message) -> None:
    """Bring the control silo's copy of an organization's object up to date."""
    _say(message, f"organization {message.shard_identifier}, object {message.object_identifier}")


@receiver("USER_UPDATE", "API_APPLICATION_UPDATE")
async def replicate_to_region(message: Message) -> None:
    """Bring a region's copy up to date; `region_name` is the sharding column that says which region's."""
    _say(message, f"{message.scope_name} {message.shard_identifier}")


@receiver("AUDIT_LOG_EVENT")
def store_event(message: Message) -> None:
    """Store an event: a plain function, so it may block, as it runs in a thread."""
    if message.payload is None:
        raise Discard("an audit log event without a payload says nothing")
    _say(message, f"event {message.payload}")


def _say(message: Message, text: str) -> None:
    place = message.outbox if message.region_name is None else f"{message.outbox}/{message.region_name}"
    rows = "1 row" if message.coalesced == 1 else f"{message.coalesced} rows"
    # One write: print() makes two, and receivers in threads would get between them.
    sys.stderr.write(f"{place}: {message.category_name} of {rows}: {text}\n")
