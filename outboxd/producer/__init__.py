"""The writing side: messages in the transaction of the change they describe."""

from __future__ import annotations

import contextlib
import threading
from typing import TYPE_CHECKING, Any

from outboxd.producer.draft import NewMessage
from outboxd.producer.producer import Producer

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from outboxd.producer.context import OutboxContext

__all__ = ["NewMessage", "Producer", "choose_by", "default", "outbox_context", "use"]

_default: Producer | None = None
_loading = threading.Lock()
_choose: Callable[[Any, Producer | None], Producer] | None = None


def outbox_context(
    connection: Any = None, *, flush: bool | None = None, flush_timeout_s: float | None = None
) -> OutboxContext:
    """
    Open, or join, a transaction that messages are written in.

        async with outbox_context(connection, flush=True) as outbox:
            await connection.execute("UPDATE ...")
            await outbox.save("ORGANIZATION_MEMBER_UPDATE", shard_identifier=1, object_identifier=2)

    Args:
        connection: A connection or session of a driver that we know, also one that a pool has lent; for Django
            `transaction.atomic()`. None: only *flush* is said, for the contexts inside.
        flush: Drain the shards that were written in right after the commit, by the receivers of this process; where it
            has none, wake the daemon. False: only write. None: as the context around says; False where there is none.
        flush_timeout_s: How long the flush may take, in seconds; None: `[producer] flush_timeout_s`.

    Raises:
        OutboxContextError: On entry: this cannot be flushed. Nothing was done.
        OutboxFlushError: On exit, after the commit: something was not delivered; it stays in the outbox, and the daemon
            tries it again.
        ConfigError: The configuration is missing or wrong.
    """
    return default(connection).context(connection, flush=flush, flush_timeout_s=flush_timeout_s)


def use(producer: Producer | None) -> None:
    """Let `outbox_context` use this one from now on; None: what the configuration says, loaded when it is needed."""
    global _default
    _default = producer


@contextlib.contextmanager
def restored() -> Iterator[None]:
    """Take back at the end what `use` is told meanwhile, by a command that runs in a process of somebody else's."""
    before = _default
    try:
        yield
    finally:
        use(before)


def choose_by(choose: Callable[[Any, Producer | None], Producer] | None) -> None:
    """Let a framework tell which one a connection gets; it is told what `use` was, None where nobody has said it."""
    global _choose
    _choose = choose


def default(connection: Any = None) -> Producer:
    """Return what `outbox_context` uses; loads the configuration at the first call."""
    if _choose is not None:
        return _choose(connection, _default)
    with _loading:  # first contexts of several threads: one producer, or each would have its own connections
        if _default is None:
            use(Producer.load())
    assert _default is not None
    return _default
