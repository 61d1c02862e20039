"""outboxd itself, measured from outside like everybody else."""

from __future__ import annotations

from bench.peers.install import Environment
from bench.peers.system import W1, W1_LONG, W2, W3, WORKERS, Settings, Statements, System

FILL = """
INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, date_added)
SELECT 0, i / {shard_rows}, 1, i / {shard_rows} * {shard_objects} + i % {shard_objects}, clock_timestamp()
FROM generate_series(0, {jobs} - 1) AS i
"""
STATEMENTS = Statements(
    fill=FILL,
    enqueue="""
        INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier)
        VALUES (0, $1::bigint, 1, $1::bigint)
    """,
    base="SELECT coalesce(pg_sequence_last_value(pg_get_serial_sequence('outbox', 'id')), 0)",
    undone="SELECT (SELECT true FROM outbox WHERE id > $1 ORDER BY id DESC LIMIT 1)",
    left="SELECT count(*) FROM outbox",
    vacuum="outbox",
)
OUTBOXD = System(
    key="outboxd",
    name="outboxd",
    package="outboxd",
    role="own",
    environment=Environment(),
    program=WORKERS / "outboxd_worker.py",
    ready="daemon.ready",
    settings=(
        Settings("NOTIFY", 100_000, {"notify": True}, "outboxd migrate --notify", loads=(W1, W2, W3)),
        Settings("NOTIFY", 1_000_000, {"notify": True}, "outboxd migrate --notify", loads=(W1_LONG,)),
        Settings("polling", 100_000, {"notify": False}, "outboxd migrate", pause_s=1.0, held=False),
    ),
    statements=STATEMENTS,
)
