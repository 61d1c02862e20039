"""The harness that measures outboxd beside its peers, run for real where nothing has to be installed for it."""

from __future__ import annotations

import asyncio
import json
import os
import sys
from typing import TYPE_CHECKING, Any

from tests.processes import ROOT

if TYPE_CHECKING:
    from pathlib import Path


async def test_outboxd_and_the_ancestor_are_measured_in_one_run(tmp_path: Path) -> None:
    figures = tmp_path / "figures.json"
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.peers", "ancestor", "--quick", "--to", str(figures)),
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        stdin=asyncio.subprocess.DEVNULL,
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert process.returncode == 0, errors.decode()

    run = json.loads(figures.read_text())
    measured: dict[str, dict[str, Any]] = {line["key"]: line for line in run["measured"]}
    assert [line["errors"] for line in run["measured"]] == [[]] * len(measured)
    assert {key for key in measured if key.startswith("ancestor")} == {
        f"ancestor_five_ranges_{load}" for load in ("w1", "w2", "w3")
    }
    assert all(len(line["jobs_s"]) == 1 for line in run["measured"])
    assert [len(found) for found in measured["outboxd_notify_w1"]["held_jobs_s"]] == [2]
    assert [len(of_round) for of_round in measured["outboxd_notify_w1"]["latency_ms"]] == [10]
    assert measured["outboxd_notify_w2"]["calls"] == measured["ancestor_five_ranges_w2"]["calls"] == 100
    assert measured["outboxd_notify_w1"]["calls"] == measured["ancestor_five_ranges_w1"]["calls"] == 1_000
    assert (run["event_loop"], run["is_quick"]) == ("uvloop", True)

    fast, slow = measured["outboxd_notify_w1"], measured["ancestor_five_ranges_w1"]
    assert fast["jobs_s"][0] > slow["jobs_s"][0]
    assert "| outboxd |" in output.decode()
    assert "| ancestor's algorithm |" in output.decode()
    written = figures.with_suffix(".md").read_text()
    assert written == output.decode()
    assert run["revision"] in written
    assert "W3: outboxd / the ancestor's algorithm" in written


async def test_who_names_a_peer_that_cannot_be_had_is_told_so_before_anything_is_measured() -> None:
    process = await asyncio.create_subprocess_exec(
        *(sys.executable, "-m", "bench.peers", "graphile", "--quick"),
        cwd=ROOT,
        env={"PATH": ""},
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.PIPE,
    )
    output, errors = await process.communicate()
    assert (process.returncode, output) == (1, b"")
    assert errors.decode().splitlines()[-1] == "Graphile Worker cannot be had: node and npm are not there"
