"""`outboxd init`: what it writes can be used as it is, and nothing of the user's is overwritten."""

from __future__ import annotations

import ast
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from outboxd import commands, load, registry
from outboxd.commands import init

if TYPE_CHECKING:
    from collections.abc import Iterator


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path[:])
    yield tmp_path
    sys.modules.pop(init.RECEIVERS, None)


def test_what_it_writes_loads_as_it_is(here: Path) -> None:
    assert commands.run(["init"]) == 0

    loaded = load.load(environ={})
    config = loaded.config
    assert loaded.folder == here
    assert config.receivers.modules == [init.RECEIVERS]
    assert (len(config.outbox), len(config.scopes), len(config.categories)) == (1, 1, 1)
    built = registry.build(config, registry.load_receivers(config.receivers.modules, here))
    assert built.receiver_count == 1


def test_its_commented_model_loads_too(here: Path) -> None:
    example = init.CONFIGURATION[init.CONFIGURATION.index("# [[model]]") :].replace("# ", "")
    (here / "outboxd.toml").write_text(init.CONFIGURATION + example)

    assert load.load(environ={}).config.model[0].table == "account"


def test_the_configuration_is_short_and_every_line_of_it_plain() -> None:
    lines = init.CONFIGURATION.splitlines()

    assert len(lines) <= 45
    assert max(map(len, lines)) <= 110
    assert ast.get_docstring(ast.parse(init.MODULE))


def test_it_says_what_to_do_next(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    commands.run(["init"])
    commands.run(["init", "other file.toml", "--force"])

    shown = capsys.readouterr().out
    assert "wrote outboxd.toml" in shown
    assert f"wrote {init.RECEIVERS}.py" in shown
    for step in ("OUTBOX_DSN", "  outboxd migrate", "  outboxd enqueue ACCOUNT_UPDATE", "  outboxd --once"):
        assert step in shown
    assert "  outboxd --config 'other file.toml' migrate" in shown
    assert here.joinpath("other file.toml").exists()


def test_a_folder_gets_the_usual_name(here: Path) -> None:
    (here / "etc").mkdir()

    assert commands.run(["init", "etc"]) == 0
    assert sorted(p.name for p in (here / "etc").iterdir()) == [f"{init.RECEIVERS}.py", "outboxd.toml"]


@pytest.mark.parametrize("present", ["outboxd.toml", f"{init.RECEIVERS}.py"])
def test_nothing_is_overwritten_nor_half_written(present: str, here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / present).write_text("mine")

    assert commands.run(["init"]) == 2

    assert [(p.name, p.read_text()) for p in here.iterdir()] == [(present, "mine")]
    shown = capsys.readouterr().err
    assert f"error: {present} already there" in shown
    assert "--force" in shown


def test_a_dangling_link_is_not_written_through(here: Path) -> None:
    (here / "outboxd.toml").symlink_to(here / "elsewhere")

    assert commands.run(["init"]) == 2
    assert not (here / "elsewhere").exists()


def test_force_overwrites(here: Path) -> None:
    (here / "outboxd.toml").write_text("mine")

    assert commands.run(["init", "--force"]) == 0
    assert (here / "outboxd.toml").read_text() == init.CONFIGURATION


def test_a_missing_folder_is_named(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert commands.run(["init", "no/where.toml"]) == 2
    assert capsys.readouterr().err == "error: there is no folder no\n"
    assert list(here.iterdir()) == []


def test_a_place_that_cannot_be_written_is_named(
    here: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr(Path, "open", refuse)

    assert commands.run(["init"]) == 2
    assert capsys.readouterr().err == "error: cannot write outboxd.toml: Permission denied\n"
    assert list(here.iterdir()) == []
