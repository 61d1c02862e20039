"""Figures that were hard to come by are not lost, and nothing half written is taken for them."""

from __future__ import annotations

import json
import shutil
import subprocess
from typing import TYPE_CHECKING

import pytest

from bench import about
from bench.kept import keep, result_file

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path


def test_a_result_file_gets_its_directory_and_nothing_in_it(tmp_path: Path) -> None:
    path = tmp_path / "new" / "figures.json"
    assert result_file(str(path)) == path
    assert list(path.parent.iterdir()) == []


def test_both_files_are_written_and_nothing_beside_them(tmp_path: Path) -> None:
    path = tmp_path / "figures.json"
    for number in (1, 2):
        assert keep(path, {"number": number}, f"number {number}")
    assert json.loads(path.read_text()) == {"number": 2}
    assert path.with_suffix(".md").read_text() == "number 2\n"
    assert sorted(tmp_path.iterdir()) == [path, path.with_suffix(".md")]


def test_what_cannot_be_written_is_said_and_ends_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gone" / "figures.json"
    result_file(str(path))
    shutil.rmtree(path.parent)
    assert not keep(path, {}, "")
    assert capsys.readouterr().err == f"the figures could not be written to {path}: No such file or directory\n"


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    identity = ("-c", "user.name=somebody", "-c", "user.email=somebody@example.org", "-c", "commit.gpgsign=false")
    (tmp_path / "bench").mkdir()
    (tmp_path / "bench" / "drain.py").touch()
    for arguments in (("init", "-q"), ("add", "."), (*identity, "commit", "-qm", "all")):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(about, "ROOT", tmp_path)
    about.commit.cache_clear()
    yield tmp_path
    about.commit.cache_clear()


@pytest.mark.parametrize(
    ("added", "differs"), [(None, False), ("bench/strange.py", True), ("bench/drain.py", True), ("notes.txt", False)]
)
def test_what_runs_and_is_not_committed_is_said(checkout: Path, added: str | None, differs: bool) -> None:
    if added:
        (checkout / added).write_text("# more")
    assert about.commit().endswith(" with changes") == differs


def test_the_commit_is_that_of_the_start(checkout: Path) -> None:
    before = about.commit()
    (checkout / "bench" / "drain.py").write_text("# edited while it runs")
    assert about.commit() == before
