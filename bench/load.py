"""What is written for the daemon to drain, and whether its receivers were given what they ought to have been."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from bench.errors import FailedError

FILL = """
INSERT INTO {table} (shard_scope, shard_identifier, category, object_identifier, payload, date_added)
SELECT 0, shard, 1, shard * {objects} + i % {objects}, {payload}, clock_timestamp()
FROM generate_series(0, {shards} - 1) AS shard, generate_series(0, {rows} - 1) AS i
ORDER BY {order}
"""
"""Each message has a time of its own, as those of different transactions have."""


def every_shard(_: int) -> bool:
    """Wait for all of them."""
    return True


@dataclasses.dataclass(frozen=True)
class Load:
    """
    How many shards, with how many messages each, about how many objects each (fewer than messages: coalescing).

    Args:
        in_turn: Written a message for each shard, and then the next: a shard's rows are not neighbours in the table.
        payload_bytes: Of the string in each payload; 0: no payload.
    """

    shards: int
    messages: int
    objects: int
    in_turn: bool = False
    payload_bytes: int = 0

    @property
    def rows(self) -> int:
        """Messages in all."""
        return self.shards * self.messages

    def rows_of(self, within: Callable[[int], bool]) -> int:
        """Return how many messages are of the shards that *within* is true of."""
        return self.messages * sum(map(within, range(self.shards)))

    def quarter(self) -> Load:
        """Return one with a quarter of the messages: of the shards, or in the only one."""
        if self.shards == 1:
            return dataclasses.replace(self, messages=self.messages // 4)
        return dataclasses.replace(self, shards=self.shards // 4)

    def fill(self, table: str) -> str:
        """Return the INSERT that writes it."""
        payload = f"jsonb_build_object('name', repeat('x', {self.payload_bytes}))" if self.payload_bytes else "NULL"
        order = "i, shard" if self.in_turn else "shard, i"
        return FILL.format(
            table=table, rows=self.messages, shards=self.shards, objects=self.objects, payload=payload, order=order
        )

    def place(self, number: int) -> tuple[int, int]:
        """Return the shard and the object of the message that was written as the *number*-th, from 0."""
        i, shard = divmod(number, self.shards) if self.in_turn else reversed(divmod(number, self.messages))
        return shard, shard * self.objects + i % self.objects

    def check(self, delivered: Sequence[int], first: int, *, within: Callable[[int], bool] = every_shard) -> None:
        """
        Look whether the deliveries are what the design promises.

        Args:
            delivered: Ids of the messages that receivers were given, in the order in which that was.
            first: Id of the first message that was written; the others follow without a gap.
            within: Tells of a shard whether its messages had to come.

        Raises:
            FailedError: A message came twice, an object's messages came out of order, or its newest did not come.
        """
        reached: dict[int, int] = {}
        for id_ in delivered:
            if not first <= id_ < first + self.rows:
                raise FailedError(f"message {id_} was delivered, which is none of those that were written")
            _, about = self.place(id_ - first)
            if id_ <= reached.get(about, 0):
                raise FailedError(f"message {id_} was delivered after {reached[about]}, about the same object {about}")
            reached[about] = id_
        newest = {}
        for number in range(self.rows):
            shard, about = self.place(number)
            if within(shard):
                newest[about] = first + number
        if missed := [about for about, id_ in newest.items() if reached.get(about) != id_]:
            raise FailedError(f"the newest message was not delivered of {len(missed):,} objects, as of {missed[0]}")

    def __str__(self) -> str:
        shards = f"{self.shards:,} shards" if self.shards > 1 else "one shard"
        order = ", the shards in turn" if self.in_turn else ""
        content = f", payloads of {self.payload_bytes} bytes" if self.payload_bytes else ""
        return f"{self.rows:,} messages in {shards} about {self.shards * self.objects:,} objects{order}{content}"
