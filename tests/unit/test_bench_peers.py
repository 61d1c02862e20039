"""What the comparison with peers makes of its figures: ratios round by round, percentiles, goals and their verdicts."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import pytest

from bench.errors import FailedError
from bench.figures import percentiles
from bench.peers.__main__ import Amounts, Runner
from bench.peers.goals import goals, sentences
from bench.peers.measure import check_calls
from bench.peers.report import markdown, table
from bench.peers.results import Measured, Run, ratios
from bench.peers.system import W1, W1_LONG, W2, W3, Entry, entries
from bench.peers.systems import SYSTEMS

if TYPE_CHECKING:
    from collections.abc import Sequence


def line(system: str, settings: str = "tuned", load: str = "W1", **values: Any) -> Measured:
    role = {"outboxd": "own", "ancestor": "ancestor"}.get(system, "peer")
    language = "Node v22" if system == "Node peer" else "Python 3.11"
    given: dict[str, Any] = {"values": {}, "documented": "", "by_trying": "", "jobs": 1_000} | values
    return Measured(f"{system}_{settings}", system, role, "1.0", language, settings, load=load, **given)  # type: ignore[arg-type]


def run_of(*lines: Measured) -> Run:
    return Run("2026-01-01", "abc with changes", "2 processors", "18", 3, (0.1, 0.2), measured=list(lines))


OWN = line("outboxd", "NOTIFY", jobs_s=[100.0, 200.0, 300.0], latency_ms=[[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]])


def test_ratios_are_made_round_by_round() -> None:
    assert ratios([100.0, 200.0, 300.0], [10.0, 40.0]) == [10.0, 5.0]
    peer = line("Python peer", jobs_s=[10.0, 40.0, 100.0])  # of the medians it would be 5.0, too, but up to 30
    assert "| 5 x (3 to 10) |" in table(run_of(OWN, peer))


def test_percentiles_of_many_values() -> None:
    assert percentiles([float(number) for number in range(1, 100 * 5)]) == (250.0, 495.0)


def test_percentiles_of_few_values_do_not_lie_beyond_them() -> None:
    assert percentiles([float(number) for number in range(1, 29)]) == (14.5, 28.0)
    assert percentiles([7.0]) == (7.0, 7.0)


def test_the_fastest_peers_are_those_with_the_best_median() -> None:
    often_slow = line("Node peer", "defaults", jobs_s=[5.0, 5.0, 99.0])
    fastest = line("Node peer", "tuned", jobs_s=[20.0, 50.0, 50.0])
    python = line("Python peer", jobs_s=[10.0, 10.0, 10.0])
    run = run_of(OWN, often_slow, fastest, python)

    found = {series.label: series for each in goals(run) for series in each.series}
    assert found["outboxd / the fastest peer (Node peer, tuned)"].values == [5.0, 4.0, 6.0]
    assert found["outboxd / the fastest Python peer (Python peer, tuned)"].values == [10.0, 20.0, 30.0]


def test_goals_are_judged_by_the_median() -> None:
    ancestors = [line("ancestor", "five ranges", load, jobs_s=[1.0, 2.0, 2.0]) for load in ("W1", "W2")]
    own = [OWN, line("outboxd", "NOTIFY", "W2", jobs_s=[20.0, 38.0, 90.0])]
    met = {each.name: each.series[0].is_met for each in goals(run_of(*own, *ancestors))}
    assert met == {"W1": True, "W2": True}
    own[1].jobs_s[2] = 39.0
    assert not goals(run_of(*own, *ancestors))[1].series[0].is_met


@pytest.mark.parametrize(("of_peer", "verdict"), [(1.6, "yes"), (1.4, "no")])
def test_outboxd_is_ahead_where_no_peer_is_sooner(of_peer: float, verdict: str) -> None:
    later = line("Node peer", latency_ms=[[9.0], [9.0], [9.0]])
    peer = line("Python peer", latency_ms=[[of_peer], [of_peer], [of_peer]])
    text = sentences(run_of(OWN, later, peer))[0]
    assert text == (
        f"Latency p50, ahead of every peer: **{verdict}**, 1.50 ms beside {of_peer:.2f} of Python peer, tuned;"
        f" round by round {1.5 / of_peer:.2f} times as long ({1.5 / of_peer:.2f} to {1.5 / of_peer:.2f})."
    )


def test_the_soonest_peer_is_that_of_the_best_median_and_not_of_the_worst_ratio() -> None:
    own = line("outboxd", "NOTIFY", latency_ms=[[9.0], [5.0], [1.0]])
    soonest = line("Node peer", latency_ms=[[2.0], [2.0], [2.0]])  # of the ratios the median is 2.5
    often_late = line("Python peer", latency_ms=[[3.0], [4.0], [0.1]])  # 3
    assert sentences(run_of(own, often_late, soonest))[0] == (
        "Latency p50, ahead of every peer: **no**, 5.00 ms beside 2.00 of Node peer, tuned; round by round"
        " 2.50 times as long (0.50 to 4.50)."
    )


def test_a_held_snapshot_says_how_often_it_ended() -> None:
    peer = line("Python peer", held_jobs_s=[[100.0, 83.0]], held_tried=3)
    never = line("Node peer", held_tried=3)
    lines = table(run_of(peer, never)).splitlines()
    assert lines[2].endswith("| 0.83 (1 of 3) |")
    assert lines[3].endswith("| none (0 of 3) |")


def test_of_the_peers_only_what_is_tuned_is_measured_behind_a_held_snapshot() -> None:
    held = [entry for entry in entries(SYSTEMS) if entry.held]
    assert {entry.load.name for entry in held} == {"W1"}
    assert {entry.settings.name for entry in held} == {"NOTIFY", "tuned", "quick stats", "five ranges"}
    assert len(held) == len({entry.key for entry in held})


class Unwilling:
    """A bench whose first time behind a held snapshot does not end, and whose rounds end as they are told to."""

    def __init__(self, rounds: Sequence[float | None] = ()) -> None:
        system = next(system for system in SYSTEMS if system.key == "outboxd")
        self.entry = Entry(system, system.settings[0], W1)
        self.times = 0
        self.event_loop = "uvloop"
        self._rounds = iter(rounds)

    async def throughput(self, jobs: int) -> float:
        speed = next(self._rounds)
        if speed is None:
            raise FailedError(f"{jobs} of {jobs} jobs not done")
        return speed

    async def latency(self, messages: int, seconds_max: float) -> list[tuple[float, float]]:
        return [(1.0, 0.5)]

    async def calls(self, jobs: int) -> int:
        return jobs

    async def held(self, jobs: int, rounds: int) -> list[float]:
        self.times += 1
        if self.times == 1:
            raise FailedError(f"{jobs} of {jobs} jobs not done")
        return [100.0] * rounds

    async def clear(self) -> None: ...


@pytest.mark.parametrize(
    ("rounds", "counted", "errors", "cell"),
    [
        ([None, 10.0, 20.0, 30.0], [10.0, 20.0, 30.0], ["throughput, warm-up"], "| 20 | 10 | 30 |"),
        ([5.0, 10.0, None], [10.0], ["throughput"], "| 10 (1 of 3 rounds) | 10 | 10 |"),
    ],
)
async def test_rounds_that_are_counted_begin_with_the_first(
    rounds: list[float | None], counted: list[float], errors: list[str], cell: str
) -> None:
    """Else the first of one system would be divided by the second of another."""
    measured = line("outboxd", "NOTIFY")
    run = run_of(measured)
    amounts = Amounts(3, held_times=0, held_rounds=0, messages=1, messages_s=1.0, jobs_max=0)
    runner = Runner(run, amounts, lambda _: None)
    runner._lines.append((Unwilling(rounds), measured))  # type: ignore[arg-type]
    await runner.measure()
    assert measured.jobs_s == counted
    assert measured.errors == [f"{error}: 1000 of 1000 jobs not done" for error in errors]
    assert (measured.calls, measured.counted, len(measured.latency_ms)) == (1_000, 1_000, 3)
    assert cell in table(run)


async def test_a_time_that_did_not_end_does_not_keep_the_others_from_being_tried() -> None:
    saved: list[int] = []
    measured = line("outboxd", "NOTIFY")
    amounts = Amounts(0, held_times=3, held_rounds=2, messages=0, messages_s=0.0, jobs_max=0, warm_up_rounds=0)
    runner = Runner(run_of(measured), amounts, lambda run: saved.append(len(run.measured[0].held_jobs_s)))
    runner._lines.append((Unwilling(), measured))  # type: ignore[arg-type]
    await runner.measure()
    assert (measured.held_tried, measured.held_jobs_s) == (3, [[100.0, 100.0], [100.0, 100.0]])
    assert measured.errors == ["held snapshot, time 1: 1000 of 1000 jobs not done"]
    assert saved == [0, 0, 1, 2]


def test_the_report_says_where_it_comes_from() -> None:
    own = line("outboxd", "NOTIFY", jobs_s=[1.0], event_loop="uvloop", calls=100, counted=1_000)
    text = markdown(run_of(own))
    assert "revision abc with changes" in text
    assert "event loop: uvloop" in text
    assert "1,000 messages are 100 calls of a receiver, so 0.1 calls/s" in text


def test_only_loads_with_several_messages_an_object_coalesce() -> None:
    assert [load.coalesces for load in (W1, W1_LONG, W2, W3)] == [False, False, True, True]
    assert [load.objects(1_050) for load in (W1, W1_LONG, W2, W3)] == [1_050, 1_050, 110, 100]
    assert W3.objects(50) == 50


@pytest.mark.parametrize(
    ("load", "numbers"),
    [
        (W1, [1, 2, 3, 4, 5, 6, 7, 8, 9]),
        (W1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 10]),
        (W1, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]),
        (W3, [1, 2, 3, 4, 5, 6, 7, 8, 9, 9]),
    ],
)
def test_a_job_that_was_not_handled_or_twice_is_found(load: Any, numbers: list[int]) -> None:
    check_calls([*range(10)], load, 10)
    check_calls([*range(10), 3], W3, 10)  # a deep shard is drained in several turns
    with pytest.raises(FailedError, match="10 jobs: the handler was given"):
        check_calls(numbers, load, 10)


@pytest.mark.parametrize("system", SYSTEMS, ids=lambda system: f"{system.key}-{system.settings[0].name}")
def test_what_is_undone_is_asked_in_the_order_that_is_written(system: Any) -> None:
    """PostgreSQL forgets the ORDER BY of an EXISTS, and would read all that died in the round."""
    assert "EXISTS" not in system.statements.undone
    assert "ORDER BY" in system.statements.undone
