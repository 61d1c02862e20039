"""faststream-outbox."""

from __future__ import annotations

from bench.peers.install import PythonEnvironment
from bench.peers.system import WORKERS, Settings, Statements, System

# What `broker.publish` and `publish_batch` write, and the one notification of their transaction.
PUBLISH = """
WITH message AS (
    INSERT INTO outbox (queue, payload, headers)
    SELECT 'bench', convert_to(n::text, 'UTF8'),
        jsonb_build_object('content-type', 'application/json', 'correlation_id', gen_random_uuid())
    FROM {source}
    RETURNING id
)
SELECT pg_notify('outbox_outbox', 'bench') FROM message LIMIT 1
"""
FASTSTREAM = System(
    key="faststream",
    name="faststream-outbox",
    package="faststream-outbox",
    environment=PythonEnvironment("python"),
    program=WORKERS / "faststream_worker.py",
    settings=(
        Settings("defaults", 3_000),
        Settings(
            "tuned",
            20_000,
            {
                "subscriber": {"max_workers": 1, "fetch_batch_size": 1_000, "terminal_flush_batch_size": 1_000},
                "autovacuum": True,
                "quiet": True,
                "uvloop": True,
            },
            "its page on performance: terminal_flush_batch_size and the autovacuum of its table",
            "1,000, where the page has 100; one worker; uvloop",
        ),
    ),
    statements=Statements(
        fill=PUBLISH.replace("{source}", "generate_series(1, {jobs}) AS n"),
        enqueue=PUBLISH.format(source="(SELECT $1::bigint AS n)"),
        base="SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0)",
        undone="SELECT (SELECT true FROM outbox WHERE id > $1 ORDER BY id DESC LIMIT 1)",
        left="SELECT count(*) FROM outbox",
        vacuum="outbox",
    ),
)
