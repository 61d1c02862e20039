"""For connections that block: a context without `await`."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Coroutine, Iterable, Mapping

    from outboxd.producer.context import OutboxContext
    from outboxd.producer.draft import NewMessage

Result = TypeVar("Result")


def at_once(work: Coroutine[Any, Any, Result]) -> Result:
    """Run a coroutine that never suspends, because its connection blocks instead."""
    try:
        work.send(None)
    except StopIteration as end:
        result: Result = end.value
        return result
    work.close()
    raise AssertionError("a blocking connection has suspended")


class SyncOutbox:
    """What `with outbox_context(…)` yields, on a connection that blocks: as `OutboxContext`, without `await`."""

    def __init__(self, context: OutboxContext) -> None:
        self._context = context

    def save(
        self,
        category: str,
        *,
        shard_identifier: Any,
        object_identifier: Any,
        payload: Any = None,
        region_name: str | None = None,
        headers: Mapping[str, Any] | None = None,
        outbox: str | None = None,
    ) -> int:
        """Write one message in the transaction; see `OutboxContext.save`."""
        return at_once(
            self._context.save(
                category,
                shard_identifier=shard_identifier,
                object_identifier=object_identifier,
                payload=payload,
                region_name=region_name,
                headers=headers,
                outbox=outbox,
            )
        )

    def save_many(self, messages: Iterable[NewMessage]) -> list[int]:
        """Write messages in the transaction; see `OutboxContext.save_many`."""
        return at_once(self._context.save_many(messages))

    def delivered(self, timeout_s: float) -> None:
        """Wait until what was written here is gone from the outbox; see `OutboxContext.delivered`."""
        at_once(self._context.delivered(timeout_s))
