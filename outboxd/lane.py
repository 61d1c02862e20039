"""Between reading and draining: what a drainer needs of one outbox, and the turns that wait for a drainer."""

from __future__ import annotations

import asyncio
from collections import deque
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable

    from outboxd.outbox import Outbox
    from outboxd.replicas import Sources
    from outboxd.settle import Settler
    from outboxd.turn import Turn


class Lane:
    """
    What a drainer needs of one outbox.

    Args:
        outbox: For payloads that are read late.
        settler: Takes the endings.
        sources: Reads rows for model receivers.
        discard_unhandled: Retire messages of a known category without receiver, instead of failing them.
        on_started: Called when a drainer takes a turn.
    """

    def __init__(
        self,
        outbox: Outbox,
        settler: Settler,
        sources: Sources,
        *,
        discard_unhandled: bool,
        on_started: Callable[[Turn], None],
    ) -> None:
        self.outbox = outbox
        self.settler = settler
        self.sources = sources
        self.discard_unhandled = discard_unhandled
        self.on_started = on_started
        self._closed: asyncio.Event | None = None
        self._turns_in_progress = 0

    @property
    def is_closed(self) -> bool:
        """Whether nothing may be started any more: the table is not what it was."""
        return self._closed is not None

    @property
    def is_busy(self) -> bool:
        """Whether a drainer is at work on one of its turns."""
        return self._turns_in_progress > 0

    async def close(self) -> None:
        """Let nothing be started any more, and wait for the turns in progress."""
        self._closed = asyncio.Event()
        if self._turns_in_progress:
            await self._closed.wait()

    def begin(self, turn: Turn) -> None:
        """Note that a drainer takes a turn."""
        self._turns_in_progress += 1
        self.on_started(turn)

    def end(self, turn: Turn) -> None:
        """Note that a turn is over."""
        self._turns_in_progress -= 1
        self.settler.finish(turn)
        if self._closed is not None and not self._turns_in_progress:
            self._closed.set()


class Queue:
    """
    Turns that wait for a drainer: in order within an outbox, the outboxes in rotation, so that none holds up another.

    An outbox whose settler is full gives no turns. Closed: drainers end when the queue is empty.
    """

    def __init__(self) -> None:
        self._turns: dict[Lane, deque[Turn]] = {}
        self._arrived = asyncio.Event()
        self._closed = False

    def put(self, lane: Lane, turn: Turn) -> None:
        """Append a turn."""
        self._turns.setdefault(lane, deque()).append(turn)
        self._arrived.set()

    async def get(self) -> tuple[Lane, Turn] | None:
        """Take the next turn; None when the queue is closed and empty."""
        while True:
            taken = self.get_nowait()
            if taken is not None or (self._closed and not self._turns):
                return taken
            self._arrived.clear()
            await self._arrived.wait()

    def get_nowait(self) -> tuple[Lane, Turn] | None:
        """Take the next turn; None when there is none that may be drained now."""
        for lane in self._turns:
            if not lane.settler.is_full or lane.is_closed:
                turns = self._turns.pop(lane)
                turn = turns.popleft()
                if turns:
                    self._turns[lane] = turns  # behind the others
                return lane, turn
        return None

    def wants_drainer(self, lane: Lane) -> bool:
        """Whether turns of this outbox wait for nothing but a drainer."""
        return lane in self._turns and not lane.settler.is_full

    def look_again(self) -> None:
        """Let waiting drainers look whether an outbox has room again."""
        self._arrived.set()

    def close(self) -> None:
        """Let the drainers end."""
        self._closed = True
        self._arrived.set()
