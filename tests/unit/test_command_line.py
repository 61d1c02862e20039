"""Command lines that are printed to be copied."""

from __future__ import annotations

import shlex
from typing import Any

import click
import pytest
from hypothesis import given
from hypothesis import strategies as st

from outboxd.command_line import lifting, line


@pytest.mark.parametrize(
    ("written", "expected"),
    [
        (line("retry", "X", 42, outbox="region"), "outboxd retry --outbox region X 42"),
        (line("retry", "X", "-5", region=None), "outboxd retry -- X -5"),
        (line("retry", "X", "it's", region="a b"), "outboxd retry --region 'a b' X 'it'\"'\"'s'"),
        (line("dead-letters list", shard="-5"), "outboxd dead-letters list --shard=-5"),
        (line("resume", 3), "outboxd resume 3"),
        (lifting("key", '[1, "2", null, 1e5000]', "1"), "outboxd options set key '[\"2\", null, 1e5000]'"),
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


@given(st.text(), st.text(min_size=1), st.text())
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
