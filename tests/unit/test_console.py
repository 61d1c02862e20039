"""Comparing what stands in a document with what is printed: what varies may differ, and nothing else."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from tests import console

if TYPE_CHECKING:
    from pathlib import Path

NAMES = {"/tmp/x1": "/etc/outboxd", " on vm": " on host-1"}


@pytest.mark.parametrize(
    ("printed", "documented"),
    [
        ("paused until 2026-11-22 09:35:42 UTC\n", "paused until 2027-01-02 03:04:05 UTC\n"),
        ("in 39 min 48 s\n", "in 40 min\n"),
        (
            "pid 12 on vm: SELECT pg_terminate_backend(12);\n",
            "pid 4711 on host-1: SELECT pg_terminate_backend(4711);\n",
        ),
        ("a line that is\n    folded\n", "a line that\n    is folded\n"),
        ("in 39\n    min\n", "in 40 min\n"),
        ("one\ntwo\nthree\nfour\n", "one\n…\nfour\n"),
        ("one\n", "one\n…\n"),
        ("pid 12     3  x\n", "pid 4711  3    x\n"),
        ("in /tmp/x1/outboxd.toml\n", "in /etc/outboxd/outboxd.toml\n"),
    ],
)
def test_what_differs_from_run_to_run_may_differ(printed: str, documented: str) -> None:
    assert console.is_what_stands_there(printed, documented, NAMES)


@pytest.mark.parametrize(
    ("printed", "documented"),
    [
        ("11 messages wait\n", "12 messages wait\n"),
        ("one\ntwo\n", "one\n"),
        ("one\n", "one\ntwo\n"),
        ("one\ntwo\nthree\n", "one\n…\ntwo\n"),
        ("two\none\n", "one\n…\ntwo\n"),
        ("pause 1 by ada\n", "pause 2 by ada\n"),
        ("reason: x\n", "reason:  x\n"),
        ("until 2026-11-22 09:35:42 UTC\n", "without end\n"),
        ("", "…\none\n"),
    ],
)
def test_nothing_else_may(printed: str, documented: str) -> None:
    assert not console.is_what_stands_there(printed, documented, NAMES)


def test_a_document_is_read_as_stories_of_steps(tmp_path: Path) -> None:
    document = tmp_path / "page.md"
    document.write_text(
        "# Page\n## First\n<!-- state: trouble -->\n```console\n$ outboxd shards\na\nb\n```\n```sh\n$ never\n```\n"
        "```console\n$ outboxd retry --all-stuck\nSure? [y/N]: y\ndone\n```\n## Second\n<!-- state: daemon -->\n"
    )

    first, second = console.stories(document)

    assert (first.name, first.state, second.name, second.state) == ("First", "trouble", "Second", "daemon")
    assert [(step.command, step.output, step.answer) for step in first.steps] == [
        ("outboxd shards", "a\nb\n", ""),
        ("outboxd retry --all-stuck", "Sure? [y/N]: y\ndone\n", "y"),
    ]
    assert first.steps[0].place.endswith("page.md:5")
    assert second.steps == []


def test_a_block_without_a_state_is_refused(tmp_path: Path) -> None:
    (tmp_path / "page.md").write_text("```console\n$ outboxd\n```\n")

    with pytest.raises(AssertionError, match=r"page\.md:2: in which state"):
        console.stories(tmp_path / "page.md")
