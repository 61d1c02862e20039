"""
How the server carries out the statements of a workload: `python -m bench.plans W1`.

Of each statement the plan of a typical call under load, with times and pages, as auto_explain saw it. A program of its
own beside `bench.profile`, because looking at each node takes time itself.
"""

from __future__ import annotations

import argparse
import contextlib
import re
from pathlib import Path
from typing import NamedTuple

from bench import command_line, snapshot, stage
from bench.about import commit
from bench.profile import PROFILED, tidy
from outboxd.config import DrainConfig
from outboxd.main import run_in_loop

SETTINGS = {
    "session_preload_libraries": "auto_explain",
    "auto_explain.log_min_duration": 0,
    "auto_explain.log_analyze": "on",
    "auto_explain.log_buffers": "on",
    "auto_explain.sample_rate": 0.2,
    "log_line_prefix": "",
}
ROUNDS = 2
STATEMENTS = 6
TITLE_CHARACTERS = 100
OTHERS = ("INSERT INTO outbox_drained", "VACUUM", "pg_catalog", "pg_stat", "typeinfo_tree")
"""What is not the daemon's, or only when it starts."""
_CALL = re.compile(r"^LOG:  duration: ([\d.]+) ms  plan:\n((?:\t.*\n)+)", re.MULTILINE)
_PLAN = re.compile(r"^\t\w[\w ]*(?: on [^\n]*)?  \(cost=", re.MULTILINE)


class Call(NamedTuple):
    """One call of a statement: its milliseconds, and its plan."""

    ms: float
    plan: str


async def _explain(name: str) -> None:
    profiled = PROFILED[name]
    async with contextlib.AsyncExitStack() as stack:
        dsn, connection = await stack.enter_async_context(stage.server(**SETTINGS))
        server_log = Path(await connection.fetchval("SHOW data_directory")).parent / "server.log"
        if profiled.held:
            await stack.enter_async_context(snapshot.hold(dsn))
        for _ in range(ROUNDS):
            await tidy(connection, profiled)
            drain = DrainConfig(concurrency=profiled.concurrency)
            async with stage.daemon(dsn, profiled.receiver, drain=drain) as daemon:
                await daemon.retire(connection, profiled.load, within=profiled.within)
        calls = _calls(server_log.read_text())
    print(f"**{name}.** {profiled.load}.\n")
    costliest = sorted(calls.items(), key=lambda each: -sum(call.ms for call in each[1]))
    for statement, of_statement in costliest[:STATEMENTS]:
        typical = sorted(of_statement)[len(of_statement) // 2]
        print(f"`{statement}`, this call {typical.ms:.2f} ms:\n\n```\n{typical.plan}\n```\n")


def _calls(text: str) -> dict[str, list[Call]]:
    """Return all calls that the server's log has, by the start of their statement."""
    calls: dict[str, list[Call]] = {}
    for found in _CALL.finditer(text):
        lines = found[2]
        plan = _PLAN.search(lines)
        if plan is not None and not any(other in lines[: plan.start()] for other in OTHERS):
            query = " ".join(lines[: plan.start()].split()).removeprefix("Query Text: ")
            call = Call(float(found[1]), lines[plan.start() :].replace("\n\t", "\n").strip())
            calls.setdefault(query[:TITLE_CHARACTERS], []).append(call)
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench.plans", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(PROFILED)}; all when none is named")
    names = command_line.chosen(parser, parser.parse_args().names, PROFILED)
    print(f"outboxd at {commit()}.\n")
    with command_line.without_traceback(), stage.log_to_a_file():
        for name in names:
            run_in_loop(_explain(name))


if __name__ == "__main__":
    main()
