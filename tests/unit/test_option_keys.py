"""Which options there are, and what their values mean."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from outboxd import option_keys
from outboxd.config import ModelConfig, OutboxConfig, ScopeConfig
from outboxd.options import Switches
from tests.drains import configure

MODEL = ModelConfig(table="member", outbox="region", category="MEMBER", shard_identifier="organization_id")
REGIONAL = msgspec.structs.replace(MODEL, table="audit", region_names=["eu", "us"])
CONFIG = msgspec.structs.replace(
    configure(OutboxConfig(name="region", table="outbox")),
    model=[MODEL, REGIONAL],
    scopes={"ORGANIZATION_SCOPE": ScopeConfig(value=0), "USER_SCOPE": ScopeConfig(value=1, disabled_shards_option="u")},
)
OUTBOXES = "outbox.disabled_outboxes"
CATEGORIES = "outbox.disabled_categories"
SHARDS = "outbox.disabled_shards.ORGANIZATION_SCOPE"
VERSION = "outbox_replication.member.replication_version"
REGIONS = "outbox_replication.member.backfill.target_regions"
KNOWN_REGIONS = "outbox_replication.audit.backfill.target_regions"


def test_the_known_options_come_from_the_configuration() -> None:
    assert list(option_keys.known(CONFIG)) == [
        OUTBOXES,
        CATEGORIES,
        SHARDS,
        "u",
        VERSION,
        REGIONS,
        "outbox_replication.audit.replication_version",
        KNOWN_REGIONS,
    ]


def test_scopes_that_name_one_option_share_it() -> None:
    scopes = {name: ScopeConfig(value=value, disabled_shards_option="off") for value, name in enumerate("ab")}

    assert option_keys.known(msgspec.structs.replace(CONFIG, scopes=scopes))["off"].scopes == (0, 1)


@pytest.mark.parametrize(
    ("name", "text", "meaning"),
    [
        (OUTBOXES, '["region"]', ["region"]),
        (CATEGORIES, '["TEAM", "MEMBER"]', ["TEAM", "MEMBER"]),
        (SHARDS, '[1, "2", 3.0, "x"]', ["1", "2", "3", "x"]),
        (SHARDS, '["0E5B2A0C-6A0B-4D43-9E9A-0A6F8D1F5C11"]', ["0e5b2a0c-6a0b-4d43-9e9a-0a6f8d1f5c11"]),
        (SHARDS, '["0E5B2A0C6A0B4D439E9A0A6F8D1F5C11"]', ["0e5b2a0c-6a0b-4d43-9e9a-0a6f8d1f5c11"]),
        (SHARDS, f"[{10**30}]", [str(10**30)]),
        (SHARDS, "[12345678901234567.0, -0.0, 1e3]", ["12345678901234567", "0", "1000"]),
        (SHARDS, "[]", []),
        (VERSION, "0", 0),
        (VERSION, "7", 7),
        (REGIONS, '["anywhere"]', ["anywhere"]),
        (KNOWN_REGIONS, '["eu"]', ["eu"]),
    ],
)
def test_a_value_that_means_something(name: str, text: str, meaning: Any) -> None:
    assert option_keys.known(CONFIG)[name].read(text) == (meaning, [])


@pytest.mark.parametrize("shard", ["d41d8cd98f00b204e9800998ecf8427e", "D41D8CD9-8F00-B204-E980-0998ECF8427E", "x-1"])
def test_a_shard_is_found_by_the_spelling_of_its_column_whatever_was_written(shard: str) -> None:
    (named,) = option_keys.known(CONFIG)[SHARDS].read(f'["{shard}"]')[0]

    assert Switches(shards=frozenset({(0, named, None)})).shard_off(0, shard, None)


@pytest.mark.parametrize(
    ("name", "text", "meaning", "problem"),
    [
        (OUTBOXES, '["region", "regoin"]', ["region"], 'names of outboxes, got "regoin", did you mean region?'),
        (CATEGORIES, "[1]", [], "names of categories, got 1"),
        (CATEGORIES, '{"MEMBER": 1}', [], 'names of categories, got {"MEMBER": 1}'),
        (SHARDS, "[1.5, 2]", ["2"], "whole numbers or strings, got 1.5"),
        (SHARDS, "[12345678901234567.5]", [], "whole numbers or strings, got 12345678901234567.5"),
        (SHARDS, "[1e99999999999999999999]", [], "whole numbers or strings, got [1e9999"),
        (SHARDS, "[true, null, [1]]", [], "whole numbers or strings, got true"),
        (SHARDS, "[1e400000]", [], "whole numbers or strings, got 1E+400000"),
        (SHARDS, "12", [], "whole numbers or strings, got 12"),
        (VERSION, "-1", 0, "a whole number, 0 or more, got -1"),
        (VERSION, "1.5", 0, "a whole number, 0 or more, got 1.5"),
        (VERSION, "true", 0, "a whole number, 0 or more, got true"),
        (KNOWN_REGIONS, '["eu", "uk"]', ["eu"], 'names of regions, got "uk"'),
        (REGIONS, "[1]", [], "names of regions, got 1"),
        (OUTBOXES, "[" * 100_000, [], "names of outboxes"),
    ],
)
def test_what_means_nothing_is_left_out_and_complained_of(name: str, text: str, meaning: Any, problem: str) -> None:
    found, problems = option_keys.known(CONFIG)[name].read(text)

    assert found == meaning
    assert problems[0].startswith(f"{name}: expected a ")
    assert problem in problems[0]
