"""The command line: options and where they stand, what is run, exit codes, and errors without traceback."""

from __future__ import annotations

import importlib.util
import json
import os
import shlex
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import CliRunner

import outboxd
from outboxd import commands, errors
from outboxd.version import __version__

# The child runs elsewhere; it is to import this checkout, installed or not.
ENVIRON = os.environ | {"PYTHONPATH": str(Path(outboxd.__path__[0]).parent)}
# Unbuffered, Python takes the part of a write that went through before the reader left for the whole.
ENVIRON.pop("PYTHONUNBUFFERED", None)


class App:
    """Stands in for the daemon and notes how it was called."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, dict[str, Any]]] = []
        self.loaded: list[Any] = []
        self.code = 0
        self.error: BaseException | None = None

    def run_daemon(self, load: Any) -> int:
        return self._run("daemon", load, {})

    def run_once(self, load: Any, **options: Any) -> int:
        return self._run("once", load, options)

    def _run(self, kind: str, load: Any, options: dict[str, Any]) -> int:
        self.calls.append((kind, options))
        self.loaded.append(load())
        if self.error is not None:
            raise self.error
        return self.code


@pytest.fixture
def app(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> App:
    fake = App()
    module = types.ModuleType("outboxd.main")
    vars(module).update(run_daemon=fake.run_daemon, run_once=fake.run_once)
    monkeypatch.setitem(sys.modules, "outboxd.main", module)
    monkeypatch.setattr(outboxd, "main", module, raising=False)
    monkeypatch.chdir(tmp_path)
    return fake


def outboxd_process(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "outboxd", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=ENVIRON, timeout=30, check=False)


# --- what is run -------------------------------------------------------------------------------------------


def test_without_a_command_the_daemon_runs(app: App) -> None:
    app.code = 1

    assert commands.run([]) == 1
    assert app.calls == [("daemon", {})]


def test_once_gets_its_options(app: App) -> None:
    assert commands.run(["--once"]) == 0
    assert commands.run(["--once", "--json", "--quiet", "--max-seconds", "1.5"]) == 0

    assert app.calls == [
        ("once", {"json_output": False, "quiet": False, "max_seconds": None}),
        ("once", {"json_output": True, "quiet": True, "max_seconds": 1.5}),
    ]


def test_global_options_reach_the_configuration(app: App, tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    file.write_text('silo_mode = "region"\ndsn = "host=file"')

    commands.run(["--config", str(file), "--dsn", "host=flag", "--silo-mode", "control"])
    commands.run(["--config", str(file)])

    first, second = app.loaded
    assert (first.source, first.config.dsn, first.config.silo_mode) == (file, "host=flag", "control")
    assert (second.config.dsn, second.config.silo_mode) == ("host=file", "region")


def test_loading_again_sees_what_has_changed(tmp_path: Path) -> None:
    file = tmp_path / "my.toml"
    context = commands.Context(file)
    file.write_text('schema = "a"')
    first = context.load()
    file.write_text('schema = "b"')

    assert (first.config.schema, context.load().config.schema) == ("a", "b")


# --- usage -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "shown"),
    [
        (["--json"], "--json: only with --once"),
        (["--quiet", "--max-seconds", "1"], "--quiet, --max-seconds: only with --once"),
        (["--json", "catalog"], "--json: only with --once, before any command"),
        (["--once", "catalog"], "--once does not go with a command (catalog)"),
        (["--once", "--max-seconds", "0"], "--max-seconds"),
        (["--silo-mode", "regional"], "--silo-mode"),
        (["catalogue"], "there is no command catalogue, did you mean catalog?"),
        (["--nonsense"], "--nonsense"),
        (["catalog", "--silo-mode", "region"], "--silo-mode"),
    ],
)
def test_usage_errors_exit_2_and_run_nothing(
    arguments: list[str], shown: str, app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    assert commands.run(arguments) == 2
    captured = capsys.readouterr()
    assert shown in captured.err
    assert captured.out == ""
    assert app.calls == []


def test_version_and_help_are_answered() -> None:
    runner = CliRunner()

    assert runner.invoke(commands.cli, ["--version"]).output == f"outboxd {__version__}\n"
    shown = runner.invoke(commands.cli, ["--help"])
    assert shown.exit_code == 0
    for name, text in commands.COMMANDS.items():
        assert f"{name} " in shown.output
        assert text.split()[0] in shown.output
    assert "OUTBOX_DSN" in shown.output


def test_help_imports_no_command_no_driver_and_no_configuration() -> None:
    code = """
import sys
from outboxd import commands
commands.run(["--help"])
heavy = {"asyncpg", "structlog", "rich", "redis"} & set(sys.modules)
print(sorted(heavy | {m for m in sys.modules if m.startswith("outboxd.commands.")}), file=sys.stderr)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stderr == "[]\n"


@pytest.mark.parametrize("name", commands.COMMANDS)
def test_every_command_of_the_table_exists_under_its_name_and_has_help(name: str) -> None:
    assert importlib.util.find_spec(f"outboxd.commands.{name.replace('-', '_')}") is not None
    with click.Context(commands.cli) as context:
        found = commands.cli.get_command(context, name)

    assert found is not None
    assert found.name == name
    assert found.help


# --- errors ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (errors.StatementFailed("no"), 1),
        (errors.UsageError("no"), 2),
        (errors.StoreUnavailable("no"), 69),
        (errors.SchemaError("no"), 78),
        (errors.PoolerError("no"), 78),
    ],
)
def test_an_expected_error_is_two_lines_and_an_exit_code(
    error: errors.OutboxdError, code: int, app: App, capsys: pytest.CaptureFixture[str]
) -> None:
    error.hint = "Do this."
    app.error = error

    assert commands.run([]) == code
    assert capsys.readouterr().err == "error: no\nhint: Do this.\n"


def test_an_unexpected_error_keeps_its_traceback(app: App) -> None:
    app.error = ZeroDivisionError()

    with pytest.raises(ZeroDivisionError):
        commands.run([])


def test_an_interrupt_is_130_without_a_word(app: App, capsys: pytest.CaptureFixture[str]) -> None:
    app.error = KeyboardInterrupt()

    assert commands.run([]) == 130
    assert capsys.readouterr().err.strip() == ""


def test_a_question_answered_with_no_is_1(app: App) -> None:
    app.error = click.Abort()

    assert commands.run([]) == 1


def test_a_broken_configuration_exits_78_with_every_problem_and_no_traceback(tmp_path: Path) -> None:
    (tmp_path / "outboxd.toml").write_text("dsm = ''\n[drain]\nconcurency = 5\n")

    done = outboxd_process("catalog", cwd=tmp_path)

    assert done.returncode == 78
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "error: 2 problems in outboxd.toml:",
        "  - unknown key dsm, did you mean dsn?",
        "  - unknown key drain.concurency, did you mean concurrency?",
    ]


def test_a_missing_configuration_names_init(tmp_path: Path) -> None:
    done = outboxd_process("--config", "none.toml", "catalog", cwd=tmp_path)

    assert done.returncode == 78
    assert "there is no file none.toml" in done.stderr
    assert "hint: " in done.stderr
    assert "outboxd init" in done.stderr


def test_a_reader_that_leaves_early_causes_no_noise(tmp_path: Path) -> None:
    """Like `outboxd catalog --json | head`, with more than a pipe holds."""
    scopes = "".join(f"[scopes.SCOPE_{n}]\nvalue = {n}\n" for n in range(1500))
    (tmp_path / "outboxd.toml").write_text(scopes)
    command = [sys.executable, "-m", "outboxd", "catalog", "--json"]
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRON
    ) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.read(1)
        process.stdout.close()
        noise = process.stderr.read().decode()

    assert process.returncode == commands.BROKEN_PIPE
    assert noise == ""


@pytest.mark.parametrize("option", ["--help", "--version"])
def test_who_reads_no_help_causes_none_either(option: str) -> None:
    """Like `outboxd --help | true`."""
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [sys.executable, "-m", "outboxd", option], stdout=writing, stderr=subprocess.PIPE, env=ENVIRON, check=False
    )
    os.close(writing)

    assert (done.returncode, done.stderr) == (commands.BROKEN_PIPE, b"")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="a full device is Linux's")
@pytest.mark.parametrize("arguments", [("catalog", "--json"), ("--help",)], ids=" ".join)
def test_output_that_cannot_be_written_is_an_error_and_no_traceback(tmp_path: Path, arguments: tuple[str, ...]) -> None:
    (tmp_path / "outboxd.toml").write_text("")
    with Path("/dev/full").open("w") as full:
        done = subprocess.run(
            [sys.executable, "-m", "outboxd", *arguments],
            stdout=full, stderr=subprocess.PIPE, cwd=tmp_path, env=ENVIRON, text=True, check=False,
        )  # fmt: skip

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: cannot write the output: No space left on device"
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_closed_streams_are_no_error(tmp_path: Path, closed: str) -> None:
    (tmp_path / "outboxd.toml").write_text("")
    done = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -m outboxd catalog {closed}"],
        capture_output=True, cwd=tmp_path, env=ENVIRON, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, "Traceback" in done.stderr) == (0, False)


def test_an_error_keeps_its_exit_code_where_nobody_reads_it(tmp_path: Path) -> None:
    done = subprocess.run(
        ["sh", "-c", f"{shlex.quote(sys.executable)} -m outboxd shards 2>&-"],
        stdout=subprocess.PIPE, cwd=tmp_path, env=ENVIRON, text=True, check=False,
    )  # fmt: skip

    assert (done.returncode, done.stdout) == (78, "")


def test_json_on_stdout_is_alone_there(tmp_path: Path) -> None:
    (tmp_path / "outboxd.toml").write_text("")

    done = outboxd_process("catalog", "--json", cwd=tmp_path)

    assert json.loads(done.stdout)["scopes"] == []
    assert "no receiver" in done.stderr


def test_the_password_of_a_flag_is_not_shown(tmp_path: Path) -> None:
    done = outboxd_process("--dsn", "postgresql://u:hunter2@h/d?sslmod=1", "catalog", cwd=tmp_path)

    assert done.returncode == 78
    assert "--dsn (dsn): unknown parameter sslmod" in done.stderr
    assert "hunter2" not in done.stderr + done.stdout
