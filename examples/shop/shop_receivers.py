"""What happens when an account has changed: here it is only told."""

import sys

from outboxd import Message, receiver


@receiver("ACCOUNT_UPDATE")
async def on_account_update(message: Message) -> None:
    print(f"account {message.object_identifier} changed: {message.payload}", file=sys.stderr)
