"""What a benchmark makes of deliveries that are not what was promised."""

from __future__ import annotations

import pytest

from bench.errors import FailedError
from bench.load import Load

PLAIN = Load(shards=3, messages=2, objects=2)
COALESCED = Load(shards=2, messages=4, objects=2)
FIRST = 100


@pytest.mark.parametrize("load", [PLAIN, COALESCED, Load(3, 2, 2, in_turn=True), Load(1, 6, 3)])
def test_everything_in_the_order_in_which_it_was_written_is_sound(load: Load) -> None:
    load.check(range(FIRST, FIRST + load.rows), FIRST)


def test_the_newest_message_of_an_object_is_enough() -> None:
    COALESCED.check([102, 103, 107, 106], FIRST)


@pytest.mark.parametrize(
    ("load", "delivered", "said"),
    [
        (PLAIN, [100, 101, 102, 103, 105], "the newest message was not delivered of 1 objects, as of 4"),
        (PLAIN, [], "the newest message was not delivered of 6 objects, as of 0"),
        (PLAIN, [100, 101, 102, 101, 103, 104, 105], "message 101 was delivered after 101, about the same object 1"),
        (PLAIN, [100, 101, 102, 103, 104, 105, 106], "message 106 was delivered, which is none of those"),
        (PLAIN, [99, 100, 101, 102, 103, 104, 105], "message 99 was delivered, which is none of those"),
        (COALESCED, [102, 103, 104, 107], "the newest message was not delivered of 1 objects, as of 2"),
        (COALESCED, [102, 100, 103, 106, 107], "message 100 was delivered after 102, about the same object 0"),
    ],
)
def test_what_is_lost_doubled_late_or_foreign_is_found(load: Load, delivered: list[int], said: str) -> None:
    with pytest.raises(FailedError, match=said):
        load.check(delivered, FIRST)


def test_of_shards_that_are_not_waited_for_nothing_has_to_come() -> None:
    PLAIN.check([102, 103, 104, 105], FIRST, within=lambda shard: shard > 0)
    assert PLAIN.rows_of(lambda shard: shard > 0) == 4


def test_shards_and_objects_follow_from_the_order_of_writing() -> None:
    assert [COALESCED.place(number) for number in range(8)] == [
        *((0, 0), (0, 1), (0, 0), (0, 1)),
        *((1, 2), (1, 3), (1, 2), (1, 3)),
    ]
    in_turn = Load(2, 2, 2, in_turn=True)
    assert [in_turn.place(number) for number in range(4)] == [(0, 0), (1, 2), (0, 1), (1, 3)]
