"""The demo's figures and how they are shown, without a server."""

from __future__ import annotations

import io
import re
import sys
from typing import TYPE_CHECKING, Any, cast

import pytest
from rich.console import Console

from outboxd import load, registry
from outboxd.demo import screen
from outboxd.demo.daemon import Daemon
from outboxd.demo.figures import Failing, Figures, Rate, Walk
from outboxd.demo.show import CONFIG

if TYPE_CHECKING:
    from pathlib import Path

ERROR = "receivers.sync_mailing_list raised ConnectionError: mailing list: 503 Unavailable"


def figures(
    *, found: int = 0, buried: int = 0, in_backoff: int = 20, failing: int = 0, counted: int | None = None
) -> Figures:
    return Figures(
        elapsed_s=12.3,
        found=found,
        written=800,
        backfilled=200,
        delivered=400,
        retired=900,
        failures=7,
        buried=buried,
        in_backoff=in_backoff,
        lag_s=0.25,
        rows_per_s=73.4,
        walk=Walk(250, 300, "walking"),
        failing=tuple(Failing(f"MEMBER {n}", 2, 0.5 * n, ERROR) for n in range(failing)),
        counted=counted,
    )


def test_every_row_is_somewhere() -> None:
    seen = figures(found=5, buried=2)

    assert (seen.coalesced, seen.waiting, seen.due) == (500, 103, 83)
    came = seen.found + seen.written + seen.backfilled
    assert came == seen.delivered + seen.coalesced + seen.due + seen.in_backoff + seen.buried


def test_counts_that_are_moments_apart_give_nothing_negative() -> None:
    assert figures(in_backoff=500).due == 0


@pytest.mark.parametrize(("counted", "adds_up"), [(100, True), (99, False), (None, False)])
def test_the_sum_is_checked_against_the_outbox(counted: int | None, adds_up: bool) -> None:
    assert figures(counted=counted).adds_up is adds_up


@pytest.mark.parametrize(("found", "buried"), [(0, 0), (5, 0), (0, 2), (5, 2)])
def test_the_summary_adds_up(found: int, buried: int) -> None:
    text = screen.summary(figures(found=found, buried=buried), 800, with_notes=True)
    rows = re.findall(r"^  ([ =+]) [a-z ]+?  +([\d,]+)   \S", text, re.MULTILINE)
    equals = [sign for sign, _ in rows].index("=")
    counts = [int(count.replace(",", "")) for _, count in rows]

    assert len(rows) == 5 + bool(found) + bool(buried)
    assert sum(counts[:equals]) == sum(counts[equals:])


@pytest.mark.parametrize(("done", "percent"), [(0, 0), (299, 99), (300, 100)])
def test_a_backfill_is_at_100_percent_when_all_is_done(done: int, percent: int) -> None:
    assert Walk(done, 300, "walking").percent == percent


def test_the_backfill_is_shown_beside_the_live_traffic() -> None:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(screen.table(figures(), "title", 80, 8))

    assert "250 of 300, walking" in capture.get()
    assert "written 800, backfilled 200 (83 % of the members, walking), delivered" in screen.line(figures())
    summary = screen.summary(figures(), 800, with_notes=True)
    assert re.search(r"\+ backfilled +200   for older members: 250 of 300 done, walking$", summary, re.MULTILINE)


@pytest.mark.parametrize(
    ("event", "condition"),
    [
        ('{"event": "backfill.changed", "condition": "finished"}', "finished"),
        ('{"event": "backfill.broken", "error": "…"}', "broken"),
        ('{"event": "backfill.resumed"}', "waiting"),
    ],
)
def test_the_daemon_says_what_its_backfill_does(event: str, condition: str) -> None:
    daemon = Daemon(process=cast("Any", None))

    daemon._take(event)

    assert daemon.backfill == condition


def test_a_line_tells_the_next_failing_shard() -> None:
    plain, failing = screen.line(figures()), screen.line(figures(failing=3))

    assert plain.count("\n") == 0
    assert failing.splitlines()[0] == plain
    assert "failing shards 3, the next: MEMBER 0, now, attempt 2 failed: ConnectionError: mailing list" in failing


@pytest.mark.parametrize("width", [10, 20, 40, 80, 100, 200])
@pytest.mark.parametrize("failing", [0, 1, 50])
def test_the_table_fits_every_width(width: int, failing: int) -> None:
    console = Console(file=io.StringIO(), width=width, force_terminal=True)
    with console.capture() as capture:
        console.print(screen.table(figures(found=3, buried=1, failing=failing), "title", width, 8))
    lines = re.sub(r"\x1b\[[\d;]*m", "", capture.get()).splitlines()

    assert max(map(len, lines)) <= width
    assert len(lines) < 60


def test_only_the_first_failing_shards_are_shown() -> None:
    console = Console(file=io.StringIO(), width=80)
    with console.capture() as capture:
        console.print(screen.table(figures(failing=11), "title", 80, 8))
    text = capture.get()

    assert text.count("MEMBER") == 8
    assert "and 3 more" in text
    assert "503 Unavailable" in text


@pytest.mark.parametrize(("error", "brief"), [(ERROR, "ConnectionError: mailing list: 503 Unavailable"), ("x", "x")])
def test_the_reason_of_a_failure_comes_first(error: str, brief: str) -> None:
    assert screen.brief(error) == brief


def test_the_rate_is_that_of_the_last_two_seconds() -> None:
    rate = Rate()

    assert rate.of(0.0, 0) == 0.0
    assert [rate.of(second, 100 * second) for second in (1, 2, 3)] == [100, 100, 100]
    assert [rate.of(second, 300) for second in (4, 5, 6)] == [50, 0, 0]


def test_what_to_type_next_is_how_it_was_called(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    script = tmp_path / "bin" / "outboxd"
    script.parent.mkdir()
    script.touch(0o755)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [str(script)])
    monkeypatch.setenv("PATH", "/nonexistent")
    assert screen.program() == "./bin/outboxd"

    monkeypatch.chdir("/usr")
    assert screen.program() == str(script)

    monkeypatch.setenv("PATH", str(script.parent))
    assert screen.program() == "outboxd"

    monkeypatch.setattr(sys, "argv", ["/x/outboxd/__main__.py"])
    assert screen.program() == f"{sys.executable} -m outboxd"


def test_every_category_of_its_configuration_has_a_receiver(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "path", list(sys.path))
    loaded = load.load(CONFIG, environ={})
    built = registry.build(loaded.config, registry.load_receivers(["outboxd.demo.receivers"], None))

    assert loaded.config.receivers.modules == ["receivers"]
    assert all(category.receivers for category in built.categories.values())
