"""The unit files: what they must agree on with outboxd, and what systemd says of them."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from typing import TYPE_CHECKING

import pytest

from outboxd import errors, session
from outboxd.config import ENVIRONMENT, DrainConfig
from tests.processes import ROOT
from tests.units import FOLDER, PROGRAM, Directive, Unit

if TYPE_CHECKING:
    from pathlib import Path

HARD_STOP_S = 15.0
EXPOSURE_MAX = 2.0
DAEMONS = ["outboxd.service", "outboxd@9465.service"]
SERVICES = [*DAEMONS, "outboxd-once.service"]
FILES = sorted(path.name for path in FOLDER.iterdir() if path.suffix in (".service", ".timer"))

every_daemon = pytest.mark.parametrize("unit", DAEMONS, indirect=True)
every_service = pytest.mark.parametrize("unit", SERVICES, indirect=True)
needs_systemd = pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")


@pytest.fixture
def unit(request: pytest.FixtureRequest) -> Unit:
    return Unit(request.param)


@every_daemon
def test_readiness_reloads_and_the_watchdog_reach_systemd(unit: Unit) -> None:
    assert unit.one("Service", "Type") == "notify"
    assert unit.one("Service", "NotifyAccess") == "main"
    assert unit.one("Service", "ExecReload") == "kill -HUP $MAINPID"


@every_service
def test_the_stop_timeout_leaves_room_for_the_hard_stop(unit: Unit) -> None:
    assert float(unit.one("Service", "TimeoutStopSec")) > DrainConfig().grace_period_s + HARD_STOP_S


@every_daemon
def test_a_database_that_boots_later_is_waited_for_and_no_number_of_crashes_is_too_many(unit: Unit) -> None:
    assert unit.one("Service", "TimeoutStartSec") == "infinity"
    assert unit.one("Unit", "StartLimitIntervalSec") == "0"


@every_service
def test_the_database_and_the_network_come_first_but_nothing_is_required(unit: Unit) -> None:
    after = unit.one("Unit", "After").split()

    assert {"network-online.target", "postgresql.service"} <= set(after)
    assert unit.one("Unit", "Wants") == "network-online.target"
    ties = {directive.name for directive in unit.directives} & {"Requires", "Requisite", "BindsTo", "PartOf"}
    assert ties == set(), "a database that is restarted would stop the daemon"


@every_daemon
def test_a_blocked_loop_is_not_killed_before_a_receiver_may_be_late(unit: Unit) -> None:
    assert float(unit.one("Service", "WatchdogSec")) >= DrainConfig().receiver_timeout_s


@every_daemon
def test_a_database_that_answers_nothing_is_no_reason_to_kill_the_daemon(unit: Unit) -> None:
    """The longest look, after a rest before which the watchdog was not fed because it had been a quarter ago."""
    sources = (path.read_text("utf-8") for path in (ROOT / "outboxd").rglob("*.py"))
    server_s = max(float(each) for source in sources for each in re.findall(r"\bstatement_timeout_s=(\d+)", source))
    look_s = DrainConfig().poll_interval_s + session.CONNECT_TIMEOUT_S + server_s + session.CLIENT_WAITS_S

    assert server_s >= 60
    assert float(unit.one("Service", "WatchdogSec")) * 3 / 4 > look_s


@every_daemon
def test_what_another_start_cannot_mend_is_not_started_again(unit: Unit) -> None:
    prevented = {int(code) for code in unit.one("Service", "RestartPreventExitStatus").split()}

    assert unit.one("Service", "Restart") == "on-failure"
    assert prevented == {errors.UsageError.exit_code, errors.ConfigError.exit_code}
    assert {errors.SchemaError.exit_code, errors.PoolerError.exit_code, errors.FleetError.exit_code} <= prevented
    assert errors.StoreUnavailable.exit_code not in prevented


@every_service
def test_the_dsn_is_a_credential(unit: Unit) -> None:
    credential, _, file = unit.one("Service", "LoadCredential").partition(":")
    environment = unit.environment("/credentials")

    assert file == "/etc/outboxd/dsn"
    assert environment["OUTBOX_DSN_FILE"] == f"/credentials/{credential}"
    assert {variable.removesuffix("_FILE") for variable in environment} <= set(ENVIRONMENT)


def test_each_replica_listens_on_a_port_of_its_own() -> None:
    assert Unit("outboxd@9465.service").environment("")["OUTBOX_HTTP_LISTEN"] == "127.0.0.1:9465"
    assert "OUTBOX_HTTP_LISTEN" not in Unit("outboxd.service").environment("")


@pytest.mark.parametrize("name", [*SERVICES, "outboxd-once.timer"])
def test_every_directive_says_why(name: str) -> None:
    silent = [directive.name for directive in Unit(name).directives if not directive.about]

    assert silent == []


def common(name: str) -> list[Directive]:
    """The directives of a service that may not differ from one to another."""
    own = {"Description", "StateDirectory", "OUTBOX_HTTP_LISTEN"}
    return [d for d in Unit(name).directives if d.name not in own and "OUTBOX_HTTP_LISTEN" not in d.value]


def test_a_replica_is_a_daemon_like_any_other() -> None:
    assert common("outboxd@9465.service") == common("outboxd.service")


def test_a_single_run_lives_in_the_daemon_s_sandbox() -> None:
    daemon, once = common("outboxd.service"), common("outboxd-once.service")
    begin = next(i for i, directive in enumerate(daemon) if directive.name == "DynamicUser")
    sandbox = [directive for directive in daemon[begin:] if directive.section == "Service"]

    assert len(sandbox) > 20
    assert once[-len(sandbox) :] == sandbox


def test_each_service_keeps_its_state_apart() -> None:
    """Two accounts that are made up cannot share a directory."""
    states = [Unit(name).one("Service", "StateDirectory") for name in SERVICES]

    assert len(set(states)) == len(states)
    assert states[1].endswith("%i")


def test_a_single_run_ends_before_the_next_one_and_is_not_killed_before() -> None:
    unit = Unit("outboxd-once.service")
    arguments = unit.arguments()
    seconds = float(arguments[arguments.index("--max-seconds") + 1])

    assert unit.one("Service", "Type") == "oneshot"
    assert seconds < 60
    assert float(unit.one("Service", "TimeoutStartSec")) > seconds + DrainConfig().grace_period_s + HARD_STOP_S


def test_the_timer_starts_the_single_run_every_minute() -> None:
    timer = Unit("outboxd-once.timer")

    assert timer.one("Timer", "OnCalendar") == "minutely"
    assert timer.all("Timer", "Unit") == [], "by its name it starts outboxd-once.service"
    assert timer.one("Install", "WantedBy") == "timers.target"


def test_every_unit_file_is_in_the_readme() -> None:
    readme = (FOLDER / "README.md").read_text("utf-8")
    installed = re.findall(r"\S+", readme.replace("`", " "))

    assert [name for name in FILES if f"systemd/{name}" not in installed] == []


@needs_systemd
@pytest.mark.parametrize("name", [*SERVICES, "outboxd@.service", "outboxd-once.timer"])
def test_systemd_finds_nothing_to_complain_about(name: str, tmp_path: Path) -> None:
    for file in FILES:
        text = (FOLDER / file).read_text("utf-8").replace(PROGRAM, sys.executable)
        (tmp_path / file).write_text(text, "utf-8")
    if "@9465" in name:
        (tmp_path / name).symlink_to(tmp_path / "outboxd@.service")

    done = run(["systemd-analyze", "verify", str(tmp_path / name)])

    complaints = [line for line in (done.stdout + done.stderr).splitlines() if "outboxd" in line]
    assert (done.returncode, complaints) == (0, [])


@needs_systemd
@pytest.mark.parametrize("name", sorted({file for file in FILES if file.endswith(".service")}))
def test_the_sandbox_leaves_little_exposed(name: str) -> None:
    threshold = f"--threshold={round(EXPOSURE_MAX * 10)}"

    done = run(["systemd-analyze", "security", "--offline=true", threshold, str(FOLDER / name)])

    assert done.returncode == 0, done.stdout.splitlines()[-1]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=30, check=False)
