"""A measure that finds something wrong counts for nothing, and the others are taken all the same."""

from __future__ import annotations

import asyncio
import contextlib
import json
import random
import sys
import types
from typing import TYPE_CHECKING, Any

import pytest

from bench import failing, stage
from bench.__main__ import Run
from bench.errors import FailedError
from bench.figures import Series, Table
from bench.load import Load
from bench.options import Options
from outboxd import registry

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

LOAD = Load(shards=100, messages=10, objects=5)


@registry.receiver("ACCOUNT_UPDATE")
async def lose_some(message: Any) -> None:
    if random.random() < 0.9:
        stage.delivered.append(message.id)


@registry.receiver("ACCOUNT_UPDATE")
async def double_some(message: Any) -> None:
    stage.delivered.extend([message.id] * random.choice((1, 1, 1, 2)))


async def test_what_receivers_lose_or_are_given_twice_ends_the_measure() -> None:
    async with stage.server() as (dsn, connection):
        async with stage.daemon(dsn) as daemon:
            await daemon.retire(connection, LOAD)
            assert len(stage.delivered) == 500
        for receiver, said in ((lose_some, "the newest message was not delivered"), (double_some, "the same object")):
            async with stage.daemon(dsn, receiver) as daemon:
                with pytest.raises(FailedError, match=said):
                    await daemon.retire(connection, LOAD)


async def test_a_profile_has_neither_the_writing_nor_the_looking_in_it(monkeypatch: pytest.MonkeyPatch) -> None:
    places = []

    @contextlib.contextmanager
    def profiled() -> Iterator[None]:
        places.append(f"begin, {len(stage.delivered)} delivered")
        yield
        places.append(f"end, {len(stage.delivered)} delivered")

    def write(load: Load, table: str) -> str:
        places.append("write")
        return fill(load, table)

    fill = Load.fill
    monkeypatch.setattr(Load, "fill", write)
    monkeypatch.setattr(Load, "check", lambda *_, **__: places.append("look"))
    async with stage.server() as (dsn, connection), stage.daemon(dsn) as daemon:
        await daemon.retire(connection, LOAD, during=profiled())
    assert places == ["write", "begin, 0 delivered", "end, 500 delivered", "look"]


async def test_healthy_shards_are_told_from_others_however_slow_a_round_is() -> None:
    """Those that failed once are retried after two seconds; here one of the healthy ends after a retry."""
    retried = asyncio.Event()

    @registry.receiver("ACCOUNT_UPDATE")
    async def fail_slowly(message: Any) -> None:
        if message.shard_identifier == 1:
            await retried.wait()
        await failing.fail_often(message)
        if stage.others:
            retried.set()

    load = Load(shards=200, messages=10, objects=10)
    failing.forget()
    async with stage.server() as (dsn, connection), stage.daemon(dsn, fail_slowly) as daemon:
        with stage.log_to_a_file():
            await daemon.retire(connection, load, within=failing.is_healthy)
    assert len(stage.delivered) == load.rows_of(failing.is_healthy) == 1_600


@pytest.fixture
def broken_suite(monkeypatch: pytest.MonkeyPatch) -> None:
    async def fail(_: Options) -> list[Table]:
        async with asyncio.TaskGroup():  # which makes a group of it
            raise FailedError("nothing was delivered")

    async def succeed(_: Options) -> list[Table]:
        return [Table("W", "about", [Series("ratio", values=[1.0])])]

    for name, measure in (("broken", fail), ("sound", succeed)):
        module = types.ModuleType(f"bench.{name}")
        vars(module)["measure"] = measure
        monkeypatch.setitem(sys.modules, f"bench.{name}", module)


@pytest.mark.usefixtures("broken_suite")
async def test_a_suite_that_fails_is_named_and_the_next_is_measured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "figures.json"
    run = Run(Options(rounds=1), path)
    await run.measure(["broken", "sound"])
    assert run.failed == {"broken": "nothing was delivered"}
    assert [table["name"] for table in json.loads(path.read_text())["tables"]] == ["W"]
    assert "- broken failed: nothing was delivered" in path.with_suffix(".md").read_text()
    shown = capsys.readouterr()
    assert shown.out.endswith("- broken failed: nothing was delivered\n")
    assert "broken failed: nothing was delivered" in shown.err
