"""Command lines that are printed to be copied."""

from __future__ import annotations

import os
import shlex
import subprocess
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd import command_line
from outboxd.command_line import line


def lifting(*arguments: str, **more: str) -> str:
    return command_line.lifting(*arguments, now="2026-11-22T06:00:00+00:00", **more)


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (line("retry", "X", 42, outbox="region"), "outboxd retry --outbox region X 42"),
        (line("retry", "X", "-5", region=None), "outboxd retry -- X -5"),
        (line("retry", "X", "it's", region="a b"), "outboxd retry --region 'a b' X 'it'\"'\"'s'"),
        (line("dead-letters list", shard="-5"), "outboxd dead-letters list --shard=-5"),
        (line("resume", 3), "outboxd resume 3"),
        (lifting("key", '[1, "2", null, 1e5000]', "1"), "outboxd options set key '[\"2\", null, 1e5000]'"),
        (lifting("key", "[7, 8]", "7", reason="too loud", expires_at="2026-11-22T06:00:59.6+00:00"),
         "outboxd options set --reason 'too loud' --expires 60s key '[8]'"),
        (lifting("key", "[7.0, 8]", "7"), "outboxd options set key '[8]'"),
        (lifting("key", f"[{'9' * 5_000}, 8]", "8"), f"outboxd options set key '[{'9' * 5_000}]'"),
        (lifting("key", f"[1e{4_999}, 8]", "1" + "0" * 4_999), "outboxd options set key '[8]'"),
        (lifting("key", "[]", "1"), "outboxd options unset key"),
        (lifting("key", "[" * 2_000 + "]" * 2_000, "1"), "outboxd options get key"),
        (lifting("key", '["A0EEBC99-9C0B-4EF8-BB6D-6BB9BD380A11"]', "a0eebc999c0b4ef8bb6d6bb9bd380a11"),
         "outboxd options unset key"),
    ],
)  # fmt: skip
def test_what_is_written(written: str, expected: str) -> None:
    assert written == expected


PRINTABLE = st.text().filter(str.isprintable)


@given(PRINTABLE, PRINTABLE.filter(bool), PRINTABLE)
def test_shell_and_command_read_what_was_meant(scope: str, region: str, shard: str) -> None:
    @click.command()
    @click.option("--region")
    @click.argument("scope")
    @click.argument("shard")
    def command(**values: Any) -> Any:
        return values

    words = shlex.split(line("retry", scope, shard, region=region))

    assert words[:2] == ["outboxd", "retry"]
    read = command.main(words[2:], standalone_mode=False)
    assert read == {"scope": scope, "shard": shard, "region": region}


@pytest.mark.parametrize(
    "identifier", ["a\nb", "\x1b[2Jb", "it's\t\\n", "-\r", "a\u00a0b", "\u202eabc", "\x7f0", "\U000e0001x"]
)
def test_what_no_terminal_shows_as_it_is_comes_through_a_shell(identifier: str) -> None:
    written = line("retry", "X", identifier, region=identifier)

    assert written.isprintable()
    shown = subprocess.run(
        ["bash", "-c", f"outboxd() {{ printf '%s\\0' \"$@\"; }}; {written}"],
        capture_output=True,
        check=True,
        env={**os.environ, "LC_ALL": "C.UTF-8"},
    )
    words = shown.stdout.decode().split("\0")[:-1]
    assert identifier in words
    assert f"--region={identifier}" in words or words[words.index("--region") + 1] == identifier
