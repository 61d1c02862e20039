"""pg-boss."""

from __future__ import annotations

from bench.peers.install import NodeEnvironment
from bench.peers.system import WORKERS, Settings, Statements, System

# Its documentation on SQL leaves everything but the name and the data to the table; NOTIFY is what its own insert adds.
INSERT = "INSERT INTO pgboss.job (name, data) SELECT 'bench', jsonb_build_object('n', n) FROM {source}"
WAKE = """
SELECT pg_notify('pgboss_' || left(encode(sha224('pgboss'::bytea), 'hex'), 24), 'bench')
FROM pgboss.queue WHERE name = 'bench' AND notify
"""
PGBOSS = System(
    key="pgboss",
    name="pg-boss",
    package="pg-boss",
    environment=NodeEnvironment(),
    program=WORKERS / "pgboss_worker.mjs",
    settings=(
        Settings("defaults", 3, documented="its page on workers: one job every two seconds", pause_s=2.0),
        Settings(
            "tuned",
            100_000,
            {
                "instance": {"useListenNotify": True},
                "queue": {"notify": True},
                "work": {"batchSize": 2_000, "burstWhenBatchFull": True, "localConcurrency": 2},
            },
            "the documentation of its types",
            "the batchSize of 2,000, two at once",
        ),
    ),
    # What is undone is asked along two partial indexes of its own, of what waits (i11) and of what is live (i14).
    statements=Statements(
        fill=INSERT.replace("{source}", "generate_series(1, {jobs}) AS n") + ";" + WAKE,
        enqueue=f"WITH job AS ({INSERT.format(source='(SELECT $1::bigint AS n)')}) {WAKE}",
        base="SELECT now()",
        undone="""
            SELECT coalesce(
                (
                    SELECT true FROM pgboss.job
                    WHERE name = 'bench' AND state < 'active' AND NOT blocked AND created_on > $1
                    ORDER BY priority, created_on DESC LIMIT 1
                ),
                (
                    SELECT true FROM pgboss.job
                    WHERE name = 'bench' AND state = 'active' AND NOT blocked AND start_after > $1
                    ORDER BY start_after DESC LIMIT 1
                )
            )
        """,
        left="SELECT count(*) FROM pgboss.job WHERE state <> 'completed'",
        vacuum="pgboss.job",
    ),
)
