"""Chancy."""

from __future__ import annotations

from bench.peers.install import PythonEnvironment
from bench.peers.system import WORKERS, Settings, Statements, System

# What `push_many_ex` runs; its ids, too, are UUIDs of version 7, which grow.
PUSH = """
WITH job AS (
    INSERT INTO chancy_jobs (id, queue, func, kwargs, max_attempts, scheduled_at)
    SELECT uuidv7(), 'default', 'chancy_jobs.{function}', json_build_object('n', n), 1, now() FROM {source}
    RETURNING id
)
SELECT pg_notify('chancy_events', '{{"t": "queue.pushed", "q": "default"}}') FROM job LIMIT 1
"""


def statements(function: str) -> Statements:
    """Its default executor runs plain functions, the asynchronous one coroutines."""
    push = PUSH.replace("{function}", function)
    return Statements(
        fill=push.replace("{source}", "generate_series(1, {jobs}) AS n"),
        enqueue=push.format(source="(SELECT $1::bigint AS n)"),
        base="SELECT uuidv7()",
        undone="""
            SELECT (SELECT true FROM chancy_jobs WHERE id > $1 AND state <> 'succeeded' ORDER BY id DESC LIMIT 1)
        """,
        left="SELECT count(*) FROM chancy_jobs WHERE state <> 'succeeded'",
        vacuum="chancy_jobs",
    )


CHANCY = System(
    key="chancy",
    name="Chancy",
    package="chancy",
    environment=PythonEnvironment("python"),
    program=WORKERS / "chancy_worker.py",
    settings=(Settings("defaults", 4, documented="as many jobs at once as processors, asked for every five seconds"),),
    statements=statements("handle"),
)
CHANCY_ASYNC = System(
    key="chancy",
    name="Chancy",
    package="chancy",
    environment=PythonEnvironment("python"),
    program=WORKERS / "chancy_worker.py",
    settings=(
        Settings(
            "tuned",
            10_000,
            {
                "executor": "chancy.executors.asyncex.AsyncExecutor",
                "concurrency": 2_000,
                "polling_interval": 1,
                "eager_polling": True,
                "send_outgoing_interval": 0.1,
                "quiet": True,
                "uvloop": True,
            },
            "its reference of Queue, of Worker (whose send_outgoing_interval is an attribute) and of the executors",
            "the numbers; uvloop",
        ),
    ),
    statements=statements("handle_async"),
)
