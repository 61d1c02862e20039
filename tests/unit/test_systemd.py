"""The unit file: what it must agree on with the daemon."""

from __future__ import annotations

import configparser
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from outboxd import errors
from outboxd.config import ENVIRONMENT, DrainConfig

UNIT = Path(__file__).parent.parent.parent / "systemd" / "outboxd.service"
HARD_STOP_S = 15.0


class _Parser(configparser.RawConfigParser):
    def optionxform(self, optionstr: str) -> str:
        return optionstr


@pytest.fixture(scope="module")
def unit() -> configparser.RawConfigParser:
    parser = _Parser(delimiters="=", comment_prefixes="#", strict=True)
    parser.read(UNIT, "utf-8")
    return parser


def test_readiness_reloads_and_the_watchdog_reach_systemd(unit: configparser.RawConfigParser) -> None:
    assert unit["Service"]["Type"] == "notify"
    assert unit["Service"]["NotifyAccess"] == "main"
    assert unit["Service"]["ExecReload"] == "kill -HUP $MAINPID"


def test_the_stop_timeout_leaves_room_for_the_hard_stop(unit: configparser.RawConfigParser) -> None:
    assert unit.getfloat("Service", "TimeoutStopSec") > DrainConfig().grace_period_s + HARD_STOP_S


def test_a_database_that_is_down_at_the_start_is_waited_for(unit: configparser.RawConfigParser) -> None:
    assert unit["Service"]["TimeoutStartSec"] == "infinity"


def test_a_blocked_loop_is_not_killed_before_a_receiver_may_be_late(unit: configparser.RawConfigParser) -> None:
    assert unit.getfloat("Service", "WatchdogSec") >= DrainConfig().receiver_timeout_s


def test_what_another_start_cannot_mend_is_not_started_again(unit: configparser.RawConfigParser) -> None:
    prevented = {int(code) for code in unit["Service"]["RestartPreventExitStatus"].split()}

    assert unit["Service"]["Restart"] == "on-failure"
    assert prevented == {errors.UsageError.exit_code, errors.ConfigError.exit_code}
    assert {errors.SchemaError.exit_code, errors.PoolerError.exit_code, errors.FleetError.exit_code} <= prevented
    assert errors.StoreUnavailable.exit_code not in prevented


def test_the_dsn_is_a_credential(unit: configparser.RawConfigParser) -> None:
    credential, _, file = unit["Service"]["LoadCredential"].partition(":")
    variable, _, value = unit["Service"]["Environment"].partition("=")

    assert Path(file).is_absolute()
    assert variable.removesuffix("_FILE") in ENVIRONMENT
    assert variable.endswith("_FILE")
    assert value == f"%d/{credential}"


def test_every_directive_of_the_sandbox_says_why() -> None:
    """A comment stands above each paragraph's first directive below [Service]."""
    for paragraph in UNIT.read_text("utf-8").split("\n\n"):
        first = paragraph.removeprefix("[Service]\n").splitlines()[0]
        assert first.startswith(("#", "[", "Restart=")), first


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="there is no systemd-analyze")
def test_systemd_finds_nothing_to_complain_about(tmp_path: Path) -> None:
    copy = tmp_path / UNIT.name
    copy.write_text(UNIT.read_text("utf-8").replace("/usr/local/bin/outboxd", sys.executable), "utf-8")

    done = subprocess.run(["systemd-analyze", "verify", copy], capture_output=True, text=True, timeout=20, check=False)

    complaints = [line for line in done.stderr.splitlines() if UNIT.name in line]
    assert complaints == []
