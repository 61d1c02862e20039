"""PgQueuer."""

from __future__ import annotations

from bench.peers.install import PythonEnvironment
from bench.peers.system import WORKERS, Settings, Statements, System

# What `Queries.enqueue` runs, without its arrays: the job and its line in the log.
INSERT = """
WITH job AS (
    INSERT INTO pgqueuer (priority, entrypoint, payload, execute_after, status)
    SELECT 0, 'bench', convert_to(n::text, 'UTF8'), now(), 'queued' FROM {source}
    RETURNING id, entrypoint, priority
)
INSERT INTO pgqueuer_log (job_id, status, entrypoint, priority) SELECT id, 'queued', entrypoint, priority FROM job
"""
PGQUEUER = System(
    key="pgqueuer",
    name="PgQueuer",
    package="pgqueuer",
    environment=PythonEnvironment("python"),
    program=WORKERS / "pgqueuer_worker.py",
    settings=(
        Settings("defaults", 20_000, {"uvloop": True}, "its command `pgq run`, which runs on uvloop"),
        Settings(
            "tuned",
            50_000,
            {"batch_size": 250, "uvloop": True, "autovac": True},
            "its guide on performance tuning: a larger batch_size for short jobs, `pgq autovac`",
            "the batch_size of 250",
        ),
    ),
    statements=Statements(
        fill=INSERT.replace("{source}", "generate_series(1, {jobs}) AS n"),
        enqueue=INSERT.format(source="(SELECT $1::bigint AS n)"),
        base="SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('pgqueuer', 'id')), 0)",
        undone="SELECT (SELECT true FROM pgqueuer WHERE id > $1 ORDER BY id DESC LIMIT 1)",
        left="""
            SELECT (SELECT count(*) FROM pgqueuer) + (SELECT count(*) FROM pgqueuer_log WHERE status = 'exception')
        """,
        vacuum="pgqueuer, pgqueuer_log",
    ),
)
