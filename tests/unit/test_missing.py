"""Which ids are looked for that were not there: how long, and how many."""

from __future__ import annotations

from outboxd.missing import GAP_MAX, MISSING_MAX, Missing

FOR_EVER = {"xmin": 1, "xid_next": 1_000}
"""A transaction runs all the time."""


def test_gaps_are_looked_for_until_they_are_filled() -> None:
    ids = Missing()

    assert not ids.note([], [(5, 2), (9, 1)], **FOR_EVER)
    assert ids.ids() == [5, 6, 9]
    assert not ids.note([6], [], **FOR_EVER)
    assert ids.ids() == [5, 9]


def test_nothing_is_looked_for_where_no_transaction_runs_that_may_fill_a_gap() -> None:
    ids = Missing()
    ids.note([], [(5, 2)], xmin=7, xid_next=7)

    assert ids.ids() == []


def test_a_gap_is_forgotten_when_all_that_ran_then_have_ended() -> None:
    ids = Missing()
    ids.note([], [(5, 1)], xmin=10, xid_next=12)
    ids.note([], [(7, 1)], xmin=11, xid_next=15)
    assert ids.ids() == [5, 7]
    ids.note([], [], xmin=12, xid_next=16)
    assert ids.ids() == [7]
    ids.note([7], [], xmin=15, xid_next=16)
    assert ids.ids() == []


def test_what_is_of_another_server_is_forgotten() -> None:
    ids = Missing()
    ids.note([], [(5, 1)], xmin=1_000, xid_next=1_001)
    ids.note([], [(7, 1)], xmin=10, xid_next=12)

    assert ids.ids() == [7]


def test_when_one_of_a_large_gap_appears_there_may_be_more() -> None:
    ids = Missing()
    ids.note([], [(1, 1), (5, GAP_MAX + 1), (1_000, GAP_MAX)], **FOR_EVER)

    assert len(ids.ids()) == 1 + 2 * GAP_MAX
    assert not ids.note([1, 1_000], [], **FOR_EVER)
    assert ids.note([5], [], **FOR_EVER)
    assert ids.note([6], [], **FOR_EVER), "it may be another transaction's"


def test_a_large_gap_is_looked_at_from_both_ends() -> None:
    ids = Missing()
    ids.note([], [(1, 10**12)], **FOR_EVER)

    half = GAP_MAX // 2
    assert ids.ids() == [*range(1, half + 1), *range(10**12 - half + 1, 10**12 + 1)]


def test_the_latest_are_kept_and_what_gives_way_counts_as_more() -> None:
    ids = Missing()
    ids.note([], [(0, 2)], **FOR_EVER)
    for number in range(1, MISSING_MAX):
        ids.note([], [(3 * number, 1)], **FOR_EVER)

    assert ids.ids() == [1, *(3 * number for number in range(1, MISSING_MAX))]
    assert ids.note([1], [], **FOR_EVER)


def test_of_many_large_gaps_the_last_ones_are_looked_for() -> None:
    ids = Missing()
    ids.note([], [(100 * number, 99) for number in range(5_000)], **FOR_EVER)

    assert len(ids.ids()) == MISSING_MAX
    assert min(ids.ids()) == 100 * (5_000 - MISSING_MAX // GAP_MAX)
