"""Coalescing against a model that is too simple to be wrong."""

from __future__ import annotations

from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from outboxd.turn import CATEGORY, ID, OBJECT, Group, coalesce

Row = tuple[Any, ...]

APART = frozenset({3, 4})
KEYS = st.tuples(st.integers(1, 4), st.one_of(st.integers(1, 3), st.text(max_size=1), st.uuids()))


@st.composite
def shards(draw: st.DrawFn) -> list[Row]:
    """Draw messages of one shard, by id, with gaps between the ids."""
    keys = draw(st.lists(KEYS, max_size=30))
    ids = draw(st.lists(st.integers(1, 10**12), min_size=len(keys), max_size=len(keys), unique=True))
    return [
        (1, message_id, category, obj, f'"{message_id}"', False, None, 0, 0)
        for message_id, (category, obj) in zip(sorted(ids), keys, strict=True)
    ]


def grouped(rows: list[Row]) -> list[Group]:
    return coalesce(rows, APART)  # type: ignore[arg-type]  # a record is read like a tuple


def model(rows: list[Row]) -> list[list[int]]:
    """The ids of each delivery, in order."""
    groups: list[list[Row]] = []
    for row in rows:
        for group in groups:
            if row[CATEGORY] not in APART and (row[CATEGORY], row[OBJECT]) == (group[0][CATEGORY], group[0][OBJECT]):
                group.append(row)
                break
        else:
            groups.append([row])
    return [[row[ID] for row in group] for group in groups]


@given(shards())
def test_coalescing_does_what_the_model_does(rows: list[Row]) -> None:
    assert [group.ids for group in grouped(rows)] == model(rows)


@given(shards())
def test_every_message_is_in_exactly_one_group(rows: list[Row]) -> None:
    ids = [message_id for group in grouped(rows) for message_id in group.ids]

    assert sorted(ids) == [row[ID] for row in rows]


@given(shards())
def test_a_group_bears_the_content_of_its_newest_and_the_schedule_of_its_oldest(rows: list[Row]) -> None:
    for group in grouped(rows):
        assert group.newest[ID] == max(group.ids)
        assert group.oldest[ID] == min(group.ids)


@given(shards())
def test_groups_come_in_the_order_of_their_lowest_id(rows: list[Row]) -> None:
    lowest = [group.ids[0] for group in grouped(rows)]

    assert lowest == sorted(lowest)


@given(shards())
def test_messages_that_stand_apart_are_alone_and_all_others_are_together(rows: list[Row]) -> None:
    groups = grouped(rows)

    assert all(len(group.ids) == 1 for group in groups if group.newest[CATEGORY] in APART)
    together = [group.newest[2:4] for group in groups if group.newest[CATEGORY] not in APART]
    assert len(together) == len(set(together))
