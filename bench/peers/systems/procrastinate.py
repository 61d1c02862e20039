"""Procrastinate."""

from __future__ import annotations

from bench.peers.install import PythonEnvironment
from bench.peers.system import WORKERS, Settings, Statements, System

DEFER = """
SELECT procrastinate_defer_jobs_v1((
    SELECT array_agg((
        'default', 'bench', 0, NULL, NULL, jsonb_build_object('n', n), NULL
    )::procrastinate_job_to_defer_v1) FROM {source}
))
"""
PROCRASTINATE = System(
    key="procrastinate",
    name="Procrastinate",
    package="procrastinate",
    environment=PythonEnvironment("python"),
    program=WORKERS / "procrastinate_worker.py",
    settings=(
        Settings("defaults", 2_000),
        Settings(
            "tuned",
            3_000,
            # Not asked for oftener: of polls PostgreSQL may keep a plan for an empty table, and 100 jobs/s come of it.
            {"concurrency": 5, "uvloop": True},
            "its reference of the worker's options",
            "the numbers (more at once, and deleting what is done, are slower); uvloop",
        ),
    ),
    statements=Statements(
        fill=DEFER.replace("{source}", "generate_series(1, {jobs}) AS n"),
        enqueue=DEFER.format(source="(SELECT $1::bigint AS n)"),
        base="SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('procrastinate_jobs', 'id')), 0)",
        undone="""
            SELECT (
                SELECT true FROM procrastinate_jobs
                WHERE id > $1 AND status IN ('todo', 'doing') ORDER BY id DESC LIMIT 1
            )
        """,
        left="SELECT count(*) FROM procrastinate_jobs WHERE status <> 'succeeded'",
        vacuum="procrastinate_jobs, procrastinate_events",
    ),
)
