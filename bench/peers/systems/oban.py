"""Oban for Python."""

from __future__ import annotations

from bench.peers.install import PythonEnvironment
from bench.peers.system import WORKERS, Settings, Statements, System

# What its own insert runs, with one notification for the statement.
INSERT = """
WITH job AS (
    INSERT INTO oban_jobs (worker, args) SELECT 'oban_jobs.Bench', jsonb_build_object('n', n) FROM {source}
    RETURNING id
)
SELECT pg_notify('public.oban_insert', '{{"queue":"default"}}') FROM job LIMIT 1
"""
OBAN = System(
    key="oban",
    name="Oban for Python",
    package="oban",
    environment=PythonEnvironment("oban", minimum=(3, 12)),
    program=WORKERS / "oban_worker.py",
    settings=(
        Settings(
            "defaults",
            10_000,
            {"queue": 10, "uvloop": True},
            "the limit that the examples of its guide on queues have; its command `oban start`, which runs on uvloop",
        ),
        Settings(
            "tuned",
            20_000,
            {"queue": {"limit": 200}, "uvloop": True},
            "its guide on queues",
            "the limit of 200",
        ),
    ),
    statements=Statements(
        fill=INSERT.replace("{source}", "generate_series(1, {jobs}) AS n"),
        enqueue=INSERT.format(source="(SELECT $1::bigint AS n)"),
        base="SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('oban_jobs', 'id')), 0)",
        undone="""
            SELECT (SELECT true FROM oban_jobs WHERE id > $1 AND state <> 'completed' ORDER BY id DESC LIMIT 1)
        """,
        left="SELECT count(*) FROM oban_jobs WHERE state <> 'completed'",
        vacuum="oban_jobs",
    ),
)
