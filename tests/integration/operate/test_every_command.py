"""
Every command, typed against a database with all kinds of trouble: exit code, width, JSON, and no traceback.

What only looks is typed on a usual terminal, on a narrow one and into a pipe with `--json`, some at the same time; what
acts, one after another, on a narrow one.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import re
import shlex
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pytest

from tests import command_lines, terminal
from tests.acceptance.servers import free_port
from tests.processes import run
from tests.trouble import troubled

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Awaitable, Callable, Iterable
    from pathlib import Path

MODEL = """
[http]
listen = "127.0.0.1:{port}"

[[model]]
table = "account"
outbox = "region"
category = "TEAM"
shard_identifier = "id"
"""
AT_ONCE = 4
NARROW, USUAL = 40, 100
"""Columns of terminals."""


@dataclass(frozen=True)
class Typed:
    """A command line, the exit code that is documented, and what is answered when it asks."""

    line: str
    code: int = 0
    answer: str = ""

    @property
    def words(self) -> list[str]:
        return shlex.split(self.line)

    @property
    def name(self) -> str:
        """The command, with its sub-command where it has any."""
        return next(name for name in command_lines.leaves() if self.words[: len(name.split())] == name.split())


LOOKING = [
    Typed("migrate --sql"),
    Typed("check"),
    Typed("check --role reader"),
    Typed("catalog"),
    Typed("shards"),
    Typed("shards --limit 100 --region eu"),
    Typed("shards --stuck"),
    *(Typed(f"inspect ORGANIZATION_SCOPE {shard}") for shard in (3, 7, 12)),
    Typed("inspect USER_SCOPE 22 --outbox control --region us"),
    Typed("depth MEMBER"),
    Typed("depth 999 --outbox region"),
    Typed("object MEMBER 31"),
    Typed("object PROFILE 231 --region eu"),
    *(Typed(f"explain ORGANIZATION_SCOPE {shard}") for shard in (2, 3, 4, 5, 7, 8, 9, 10, 12, 13)),
    *(Typed(f"explain USER_SCOPE {shard} --region {region}") for shard, region in ((21, "eu"), (21, "us"), (22, "us"))),
    Typed("explain 1 23 --region eu"),
    Typed("doctor", code=1),
    Typed("health", code=69),
    Typed("health --live", code=69),
    Typed("options list"),
    Typed("options list --all"),
    Typed("options get outbox.disabled_shards.ORGANIZATION_SCOPE"),
    Typed("options get outbox.disabled_outboxes", code=1),
    Typed("pause --list"),
    Typed("dead-letters list"),
    Typed("dead-letters list --category LIMITED --older-than 1s"),
    Typed("dead-letters show 1"),
    Typed("dead-letters show 999", code=1),
    Typed("backfill status"),
    Typed("backfill plan"),
    # What cannot be:
    Typed("explain ORGANIZATION_SCOP 3", code=2),
    Typed("inspect ORGANIZATION_SCOPE three", code=2),
    Typed("options get outbox.disabled_shard", code=2),
    Typed("pause --category AUDIT --expires yesterday", code=2),
    Typed("options set outbox.disabled_outboxes [", code=2),
]
ACTING = [
    Typed("init new.toml"),
    Typed("migrate"),
    Typed("enqueue MEMBER --shard 1 --object 14"),
    Typed("enqueue MEMBER --shard 1 --object 15 --json"),
    Typed("options set outbox.disabled_categories '[\"PROFILE\"]' --reason 'they ask for it' --expires 2h"),
    Typed("options unset outbox.disabled_categories"),
    Typed("options unset outbox.disabled_categories", code=1),
    Typed("pause --scope ORGANIZATION_SCOPE --shard 2 --reason floods --expires 2h"),
    Typed("pause --backfill account"),
    Typed('pause --category TEAM --reason "their database is full" --json'),
    Typed("resume --category TEAM"),
    Typed("resume --scope ORGANIZATION_SCOPE --shard 2"),
    Typed("resume 3 --now"),
    Typed("resume 999", code=1),
    Typed("retry ORGANIZATION_SCOPE 9"),
    Typed("retry ORGANIZATION_SCOPE 11", code=1),
    Typed("retry --all-stuck", answer="n", code=1),
    Typed("retry --all-stuck", answer="y"),
    Typed("drain ORGANIZATION_SCOPE 1"),
    Typed("drain ORGANIZATION_SCOPE 8 --json"),
    Typed("drain ORGANIZATION_SCOPE 3", code=1),
    Typed("drain ORGANIZATION_SCOPE 5", code=1),
    Typed("bury 1 --outbox region --reason 'refused for good'"),
    Typed("bury 1 --outbox region --reason 'refused for good'", code=1),
    Typed("bury 2 3 --outbox region --reason both", answer="y"),
    Typed("dead-letters retry 2"),
    Typed("dead-letters purge --older-than 1s", answer="n", code=1),
    Typed("dead-letters purge --category PROFILE", answer="y"),
    Typed("backfill run account", code=1),
    Typed("backfill rewind account", answer="y"),
    Typed("backfill skip account", answer="y"),
    Typed("resume --backfill account"),
    Typed("backfill run"),
]
ASKING = [
    "retry --all-stuck",
    "resume --all",
    "bury 2 3 --outbox region --reason both",
    "dead-letters retry --all",
    "dead-letters purge --all",
    "backfill rewind account",
    "backfill skip account",
]
ELSEWHERE = {"demo"}
"""It has a database of its own: `tests/acceptance/test_demo.py` types it."""
_EVENT = re.compile(r"^\d{4}-\d\d-\d\dT[^\n]*\n?", re.MULTILINE)
_TO_COPY = re.compile(r" *(?:-> |GRANT |export |outboxd )|.*: outboxd ")
"""What is to be copied stays in one piece, and events of the log are as long as they are."""


@pytest.fixture
async def file(database: str, tmp_path: Path) -> AsyncIterator[Path]:
    """The configuration of a database with all kinds of trouble, and a table to walk."""
    async with troubled(database, tmp_path) as trouble:
        await trouble.connection.execute("CREATE TABLE account (id bigint PRIMARY KEY)")
        await trouble.connection.execute("INSERT INTO account SELECT generate_series(1, 25)")
        trouble.file.write_text(trouble.file.read_text() + MODEL.format(port=free_port()))
        yield trouble.file


def is_too_long(line: str, columns: int) -> bool:
    return len(line) > columns and not _TO_COPY.match(line)


def offers_json(typed: Typed) -> bool:
    return any("--json" in parameter.opts for parameter in command_lines.leaves()[typed.name].params)


async def all_of(lines: Iterable[Typed], check: Callable[[Typed], Awaitable[None]]) -> None:
    """Check every line, a few at a time; says of all at once what is wrong with them."""
    room = asyncio.Semaphore(AT_ONCE)
    wrong: dict[str, str] = {}

    async def one(typed: Typed) -> None:
        async with room:
            try:
                await check(typed)
            except AssertionError as exc:
                wrong[typed.line] = str(exc)

    await asyncio.gather(*map(one, lines))
    assert not wrong, "\n\n".join(f"outboxd {line}\n{text}" for line, text in wrong.items())


async def on_terminal(file: Path, typed: Typed, columns: int) -> None:
    """Type it on a terminal; `terminal` itself looks for tracebacks."""
    code, shown = await terminal.ended(file, *typed.words, answer=typed.answer, columns=columns)
    text = re.sub(r"[^\n]*\r", "", terminal.STYLE.sub("", shown.replace("\r\n", "\n")))  # a line may be drawn anew
    text = text.replace(str(file), "/etc/outboxd/config.toml")

    assert code == typed.code, text
    assert text.strip(), "it says nothing"
    if "--sql" not in typed.words:
        text = text.replace(f"[y/N]: {typed.answer}", "[y/N]:")
        assert [line for line in _EVENT.sub("", text).splitlines() if is_too_long(line, columns)] == []


async def into_pipe(file: Path, typed: Typed) -> None:
    """Let a program read its JSON; a command that could not do it prints none."""
    done = await run(*typed.words, *(["--json"] if "--json" not in typed.words else []), config=file)

    assert done.returncode == typed.code, done.stderr
    assert "Traceback" not in done.stderr
    if typed.code == 0 or done.stdout:
        json.loads(done.stdout)


def test_no_command_is_left_out() -> None:
    assert {typed.name for typed in LOOKING + ACTING} | ELSEWHERE == set(command_lines.leaves())


@pytest.mark.parametrize("columns", [USUAL, NARROW])
async def test_what_looks_on_a_terminal(file: Path, columns: int) -> None:
    await all_of(LOOKING, lambda typed: on_terminal(file, typed, columns))


async def test_what_a_run_sums_up_on_a_narrow_terminal(file: Path) -> None:
    await on_terminal(file, Typed("--once"), NARROW)


async def test_what_looks_prints_json_where_that_is_offered(file: Path) -> None:
    offered = [typed for typed in LOOKING if offers_json(typed) and typed.line != "pause --category AUDIT"]
    assert {typed.name for typed in offered} >= {"shards", "explain", "doctor", "pause", "backfill status"}

    await all_of(offered, lambda typed: into_pipe(file, typed))


async def test_what_acts_on_a_narrow_terminal(file: Path) -> None:
    with contextlib.chdir(file.parent):
        for typed in ACTING:
            if "--json" in typed.words:
                await into_pipe(file, typed)
            else:
                await on_terminal(file, typed, NARROW)


@pytest.mark.parametrize(("answer", "code", "said"), [("n", 1, "nothing was changed"), (terminal.CTRL_C, 130, "")])
async def test_who_is_asked_may_say_no_or_leave(file: Path, answer: str, code: int, said: str) -> None:
    async def ends(typed: Typed) -> None:
        ended, shown = await terminal.ended(file, *typed.words, answer=typed.answer)
        assert (ended, shown.partition("[y/N]:")[2].strip().removeprefix(answer).strip()) == (code, said), shown

    await all_of([Typed(line, code, answer) for line in ASKING], ends)
