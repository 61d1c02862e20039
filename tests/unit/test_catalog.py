"""`outboxd catalog`: everything configured, as a table and as one JSON document, without a database."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

import pytest

from outboxd import commands

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CONFIG = """
[receivers]
modules = ["catalog_receivers"]

[[outbox]]
name = "control"
table = "app.hybrid_control_outbox"
silo = "control"
sharding_columns = ["region_name", "shard_scope", "shard_identifier"]
on_unhandled = "discard"

[scopes.USER_SCOPE]
value = 1
tag = "user_id"

[scopes.ORGANIZATION_SCOPE]
value = 0
tag = "organization_id"
disabled_shards_option = "hybrid_cloud.authentication.disabled_organization_shards"

[categories.USER_UPDATE]
value = 9
scope = "USER_SCOPE"
coalesce = false
on_error = "skip"
max_attempts = 12

[categories.ORGANIZATION_UPDATE]
value = 3
scope = "ORGANIZATION_SCOPE"

[[model]]
table = "organizationmember"
outbox = "control"
category = "ORGANIZATION_UPDATE"
shard_identifier_sql = "coalesce(organization_id, 0)"
region_names = ["us"]
"""
MODULE = """
from outboxd.registry import receiver
print("a module that prints when it is imported")

@receiver("USER_UPDATE")
async def replicate_user(message): ...

@receiver("USER_UPDATE")
def tell_search(message): ...
"""


@pytest.fixture(autouse=True)
def _here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    (tmp_path / "outboxd.toml").write_text(CONFIG)
    (tmp_path / "catalog_receivers.py").write_text(MODULE)
    yield
    sys.modules.pop("catalog_receivers", None)


def document(capsys: pytest.CaptureFixture[str]) -> dict[str, list[dict[str, Any]]]:
    assert commands.run(["catalog", "--json"]) == 0
    found: dict[str, list[dict[str, Any]]] = json.loads(capsys.readouterr().out)
    return found


def test_json_is_one_document_with_everything_in_the_order_of_the_numbers(
    capsys: pytest.CaptureFixture[str],
) -> None:
    found = document(capsys)

    assert list(found) == ["scopes", "categories", "outboxes", "models"]
    assert [(s["value"], s["name"]) for s in found["scopes"]] == [
        (0, "ORGANIZATION_SCOPE"),
        (1, "USER_SCOPE"),
    ]
    assert found["categories"][1] == {
        "name": "USER_UPDATE",
        "value": 9,
        "scope": "USER_SCOPE",
        "coalesce": False,
        "on_error": "skip",
        "max_attempts": 12,
        "receivers": ["catalog_receivers.replicate_user", "catalog_receivers.tell_search"],
    }
    assert found["outboxes"] == [
        {
            "name": "control",
            "table": "app.hybrid_control_outbox",
            "silo": "control",
            "sharding_columns": ["region_name", "shard_scope", "shard_identifier"],
            "key_type": "bigint",
            "on_unhandled": "discard",
        }
    ]
    assert found["models"][0]["shard_identifier_sql"] == "coalesce(organization_id, 0)"


def test_the_option_that_switches_shards_off_is_named_also_where_it_is_the_default(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert [s["disabled_shards_option"] for s in document(capsys)["scopes"]] == [
        "hybrid_cloud.authentication.disabled_organization_shards",
        "outbox.disabled_shards.USER_SCOPE",
    ]


def test_the_tables_name_everything(capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["catalog"]) == 0

    captured = capsys.readouterr()
    lines = [line.split() for line in captured.out.splitlines()]
    receivers = ["catalog_receivers.replicate_user,", "catalog_receivers.tell_search"]
    assert ["9", "USER_UPDATE", "USER_SCOPE", "no", "skip", "12", *receivers] in lines
    assert ["3", "ORGANIZATION_UPDATE", "ORGANIZATION_SCOPE", "yes", "block", "0", "nobody"] in lines
    assert "region_name, shard_scope, shard_identifier" in captured.out
    assert "coalesce(organization_id, 0)" in captured.out
    assert "warning" not in captured.err


def test_it_says_loudly_that_nobody_receives_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "catalog_receivers.py").write_text("")

    assert commands.run(["catalog", "--json"]) == 0

    captured = capsys.readouterr()
    assert json.loads(captured.out)["categories"][0]["receivers"] == []
    assert "warning: no receiver is registered" in captured.err


def test_an_empty_configuration_is_an_empty_catalog(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "outboxd.toml").write_text("")

    assert document(capsys) == {"scopes": [], "categories": [], "outboxes": [], "models": []}
    assert commands.run(["catalog"]) == 0
    assert "scopes (0)" in capsys.readouterr().out


def test_a_receiver_of_an_unknown_category_is_a_configuration_error(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "catalog_receivers.py").write_text(MODULE.replace("USER_UPDATE", "USER_UPDAT"))

    assert commands.run(["catalog"]) == 78
    assert "did you mean USER_UPDATE?" in capsys.readouterr().err
