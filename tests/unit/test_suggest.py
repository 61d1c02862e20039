"""`did you mean`."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from outboxd.suggest import nearest

KNOWN = ["concurrency", "poll_interval_s", "grace_period_s"]


def test_the_nearest_word_is_suggested() -> None:
    assert nearest("concurency", KNOWN) == ", did you mean concurrency?"


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
