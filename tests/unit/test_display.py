"""How lines are folded to a terminal, and what never is: a command must come out of it in one piece."""

from __future__ import annotations

import pytest

from outboxd import display
from tests.terminal import STYLE


@pytest.fixture(autouse=True)
def _narrow(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "40")
    monkeypatch.setattr(display, "is_terminal", lambda _: True)


@pytest.mark.parametrize(
    "line",
    [
        "  -> outboxd retry --outbox region --region eu ORGANIZATION_SCOPE 4711",
        "         -> DROP INDEX CONCURRENTLY public.outbox_scheduled_for_shard_scope_idx;",
        "         -> VACUUM (FREEZE, VERBOSE) public.outbox_of_the_control_silo;",
        "  -> If nobody needs it: SELECT pg_drop_replication_slot('a_replica_of_old');",
        "hint: To end that, somebody must type this: outboxd resume 3",
        "GRANT SELECT, INSERT, UPDATE, DELETE ON public.outbox TO outboxd;",
    ],
)
def test_what_is_to_be_copied_is_not_folded(line: str) -> None:
    assert display.fitting(line) == line


@pytest.mark.parametrize(
    "line",
    [
        "  -> Wait for the delivery; one that hangs ends after receiver_timeout_s.",
        "  -> Start `outboxd`, or wait for the next `outboxd --once`; or drain this shard here:",
        "the receiver raised DatabaseError: SELECT failed because the table was not there at all",
    ],
)
def test_prose_is_folded_between_words(line: str) -> None:
    shown = display.fitting(line)

    assert max(map(len, shown.splitlines())) <= 40
    assert " ".join(shown.split()) == " ".join(line.split())


def test_a_command_between_backticks_is_not_broken() -> None:
    command = "`outboxd options set outbox.disabled_shards.ORGANIZATION_SCOPE '[42]'`"

    first, *others = display.fitting(f"to end it: {command}, or ask somebody whether it has to stay").splitlines()

    assert first == "to end it:"
    assert [line for line in others if command in line] == [others[0]]


def test_a_lone_backtick_quotes_nothing() -> None:
    shown = display.fitting("an identifier with ` in it " + "x" * 100)

    assert max(map(len, shown.splitlines())) <= 40


def test_a_cell_is_folded_to_its_column_whatever_it_quotes(capsys: pytest.CaptureFixture[str]) -> None:
    reason = "somebody typed `UPDATE orders SET state = 'sent' WHERE id = 7` at night and left"

    display.show_table(["id", "reason"], [["1", reason]], folds=["reason"])

    assert max(map(len, STYLE.sub("", capsys.readouterr().out).splitlines())) <= 40


def test_what_is_no_terminal_gets_lines_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(display, "is_terminal", lambda _: False)
    line = "a line that is longer than the forty columns of this terminal"

    assert display.fitting(line) == line
