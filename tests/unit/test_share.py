"""Of many shards each daemon takes its own first; nothing is left for ever."""

from __future__ import annotations

from typing import TYPE_CHECKING

from outboxd import share as module
from outboxd.model import Candidate
from outboxd.share import SHARED_MIN, Share

if TYPE_CHECKING:
    import pytest

MANY = [Candidate((0, number), 7 * number - 1_000, None) for number in range(3 * SHARED_MIN)]


def share(index: int, count: int) -> Share:
    return Share(lambda: (index, count))


def test_one_daemon_takes_all() -> None:
    assert share(0, 1).of(MANY, 0) == MANY


def test_several_divide_what_is_found() -> None:
    parts = [share(index, 3).of(MANY, 0) for index in range(3)]
    assert sorted(candidate.shard for part in parts for candidate in part) == [each.shard for each in MANY]
    assert all(len(part) > SHARED_MIN / 2 for part in parts)


def test_few_are_for_whoever_comes_first() -> None:
    few = MANY[: SHARED_MIN - 1]
    assert share(1, 2).of(few, 0) == few


def test_what_was_left_is_taken_when_there_is_nothing_else() -> None:
    one = share(0, 2)
    assert len(one.of(MANY, 0)) < len(MANY)
    assert one.take_rest(1, 0.0)
    assert one.of(MANY, 1) == MANY
    assert len(one.of(MANY, 2)) < len(MANY)


def test_nothing_is_taken_again_where_nothing_was_left() -> None:
    one = share(0, 2)
    assert not one.take_rest(0, 0.0)
    one.of(MANY, 0)
    assert one.take_rest(1, 0.0)
    one.of(MANY, 1)
    assert not one.take_rest(2, 0.0)


def test_now_and_then_a_pass_takes_everything(monkeypatch: pytest.MonkeyPatch) -> None:
    one = share(0, 2)
    one.of(MANY, 0)
    one.end_pass(1)
    assert len(one.of(MANY, 1)) < len(MANY)
    monkeypatch.setattr(module, "ALL_EVERY_S", 0.0)
    one.end_pass(2)
    assert one.of(MANY, 2) == MANY


def test_not_all_the_time() -> None:
    one = share(0, 2)
    one.of(MANY, 0)
    assert one.take_rest(1, 0.0)
    one.of(MANY, 2)
    assert not one.take_rest(3, 3_600.0)
