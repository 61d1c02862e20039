"""Graphile Worker."""

from __future__ import annotations

from bench.peers.install import NodeEnvironment
from bench.peers.system import WORKERS, Settings, Statements, System


def tuned(local_queue: int) -> dict[str, object]:
    return {
        "concurrentJobs": 24,
        "maxPoolSize": 25,
        "localQueue": {"size": local_queue},
        "completeJobBatchDelay": 0,
        "failJobBatchDelay": 0,
    }


JOBS = "graphile_worker._private_jobs"
GRAPHILE = System(
    key="graphile",
    name="Graphile Worker",
    package="graphile-worker",
    environment=NodeEnvironment(),
    program=WORKERS / "graphile_worker.mjs",
    settings=(
        Settings("defaults", 5_000),
        Settings("quick stats", 50_000, tuned(500), "its page on performance, number for number"),
        Settings("tuned", 100_000, tuned(10_000), "the same, and what its types say of a larger queue", "the 10,000"),
    ),
    statements=Statements(
        fill="""
            SELECT count(*) FROM graphile_worker.add_jobs((
                SELECT array_agg((
                    'bench', json_build_object('n', i), NULL, NULL, NULL, NULL, NULL, NULL
                )::graphile_worker.job_spec) FROM generate_series(1, {jobs}) AS i
            ))
        """,
        enqueue="SELECT graphile_worker.add_job('bench', json_build_object('n', $1::bigint))",
        base=f"SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('{JOBS}', 'id')), 0)",
        undone=f"SELECT (SELECT true FROM {JOBS} WHERE id > $1 ORDER BY id DESC LIMIT 1)",
        left=f"SELECT count(*) FROM {JOBS}",
        vacuum=JOBS,
    ),
)
