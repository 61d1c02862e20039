"""`did you mean`."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.suggest import nearest

KNOWN = ["concurrency", "poll_interval_s", "grace_period_s"]


def test_the_nearest_word_is_suggested() -> None:
    assert nearest("concurency", KNOWN) == ", did you mean concurrency?"


KEYS = [f"outbox.disabled_shards.{scope}" for scope in ("ORGANIZATION_SCOPE", "SUBSCRIPTION_SCOPE", "USER_SCOPE")]


@pytest.mark.parametrize(
    ("word", "near"),
    [
        ("outbox.disabled_shards.ORG", 0),
        ("outbox.disabled_shards.org", 0),
        ("outbox.disabled_shards.SUBSCRIPTON", 1),
        ("outbox.disabled_shards.USER", 2),
        ("outbox.disabled_shard.USER_SCOPE", 2),
    ],
)
def test_of_dotted_keys_the_last_part_decides(word: str, near: int) -> None:
    assert nearest(word, KEYS) == f", did you mean {KEYS[near]}?"


def test_a_word_that_is_begun_is_completed() -> None:
    assert nearest("grace", KNOWN) == ", did you mean grace_period_s?"


def test_where_nothing_is_near_everything_is_listed_in_order() -> None:
    assert nearest("zzz", KNOWN) == " (known: concurrency, grace_period_s, poll_interval_s)"


def test_a_long_list_is_cut_off_after_twenty() -> None:
    assert nearest("zzz", [f"{n:04}" for n in range(100)]).count(", ") == 19


def test_nothing_is_said_where_nothing_is_known() -> None:
    assert nearest("x", []) == ""


@given(st.text(), st.lists(st.text()))
def test_a_suggestion_is_always_a_known_word(word: str, known: list[str]) -> None:
    text = nearest(word, known)

    if text.startswith(", did you mean "):
        assert text.removeprefix(", did you mean ").removesuffix("?") in known
