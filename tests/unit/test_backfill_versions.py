"""Versions, low bounds and the watermark in Redis: the pure parts of a backfill."""

from __future__ import annotations

import uuid

import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd import errors
from outboxd.source import Source
from outboxd.watermark import State, _encoded, _parsed, next_step

VERSIONS = st.integers(-5, 5)
STATES = st.builds(State, st.sampled_from(["0", "-0", "7"]), VERSIONS)


@given(STATES)
def test_nothing_is_walked_with_version_zero_or_below(state: State) -> None:
    assert next_step(state, 0) is None
    assert next_step(state, -1) is None


@given(STATES, VERSIONS)
def test_a_walk_goes_on_begins_anew_or_has_nothing_to_do(state: State, target: int) -> None:
    step = next_step(state, target)
    if target <= 0 or state.version > target:
        assert step is None
    elif state.version == target:
        assert step == state
    else:
        assert step == State("0", target), "a higher version begins at the lowest key"


def source(key_type: str) -> Source:
    return Source(oid=1, name="t", alias="t", key="id", key_type=key_type)


@given(st.integers(-(2**63), 2**63 - 1))
def test_the_next_batch_begins_behind_the_last_key(last: int) -> None:
    low_bound = source("bigint").low_bound_after(str(last))

    assert source("bigint").first_key(low_bound) == last + 1
    assert source("bigint").is_past_the_end(last + 1) == (last == 2**63 - 1)


def test_after_key_minus_one_the_walk_does_not_look_as_if_it_had_not_begun() -> None:
    assert source("bigint").first_key("0") is None
    assert source("bigint").first_key(source("bigint").low_bound_after("-1")) == 0


@given(st.uuids())
def test_the_low_bound_of_uuid_keys_is_the_last_one(last: uuid.UUID) -> None:
    assert source("uuid").first_key(source("uuid").low_bound_after(str(last))) == last
    assert not source("uuid").is_past_the_end(last)


@pytest.mark.parametrize(
    ("key_type", "low_bound"), [("bigint", "seven"), ("uuid", "7"), ("integer", str(uuid.UUID(int=1)))]
)
def test_a_low_bound_of_another_type_is_an_error_that_says_so(key_type: str, low_bound: str) -> None:
    with pytest.raises(errors.WatermarkError, match=f"{low_bound}.* is no {key_type}"):
        source(key_type).first_key(low_bound)


@pytest.mark.parametrize(
    ("state", "value"),
    [
        (State("0", 1), "[0,1]"),
        (State("11", 3), "[11,3]"),
        (State("-5", 2), "[-5,2]"),
        (State(str(2**63), 2), "[9223372036854775808,2]"),
        (State("00000000-0000-0000-0000-0000000000ff", 2), '["00000000-0000-0000-0000-0000000000ff",2]'),
    ],
)
def test_the_value_in_redis(state: State, value: str) -> None:
    assert _encoded(state) == value
    assert _parsed("t", value) == state


@given(st.one_of(st.just("-0"), st.integers(-(2**63), 2**63).map(str), st.uuids().map(str)), st.integers(1, 2**31 - 1))
def test_what_is_written_to_redis_is_read_back(low_bound: str, version: int) -> None:
    assert _parsed("t", _encoded(State(low_bound, version))) == State(low_bound, version)


def test_spaces_of_another_writer_do_not_matter() -> None:
    assert _parsed("t", "[ 11 , 3 ]") == State("11", 3)


@pytest.mark.parametrize(
    "value",
    ["garbage", "11", "[11]", "[11, 3, 1]", '{"a": 1}', "[1.5, 3]", "[null, 3]", '[1, "3"]', "[true, 3]", "\ufffd"],
)
def test_another_shape_is_an_error_that_names_the_key(value: str) -> None:
    with pytest.raises(errors.WatermarkError, match=r"redis key outbox_backfill\.public\.t holds"):
        _parsed("public.t", value)
