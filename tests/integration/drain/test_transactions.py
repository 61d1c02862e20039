"""No transaction and no row lock of outboxd is open while a receiver runs (I5); a healthy claim writes nothing (I8)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.drains import Recorder, connected, drain_once, failing, make_due, write, write_many
from tests.eventually import eventually

if TYPE_CHECKING:
    import asyncpg

    from outboxd.model import Message

OPEN_SINCE_BEFORE = """
    SELECT application_name, state, query FROM pg_stat_activity
    WHERE datname = current_database() AND application_name LIKE 'outboxd%' AND xact_start < $1
"""
LOCKS_SINCE_BEFORE = """
    SELECT a.application_name, l.locktype, l.mode FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
    WHERE a.datname = current_database() AND a.application_name LIKE 'outboxd%'
        AND l.locktype <> 'advisory' AND a.xact_start < $1
"""


class Witness:
    """Looks from inside a receiver at what outboxd's sessions hold."""

    def __init__(self, dsn: str) -> None:
        self._dsn = dsn
        self.looks = 0
        self.lockable: list[int] = []

    async def __call__(self, _message: Message) -> None:
        async with connected(self._dsn) as other:
            now = await other.fetchval("SELECT clock_timestamp()")

            async def all_ended() -> bool:
                # What began before the receiver may end a moment later; what stays open until it returns never does.
                assert await other.fetch(OPEN_SINCE_BEFORE, now) == []
                assert await other.fetch(LOCKS_SINCE_BEFORE, now) == []
                return True

            await eventually(all_ended, 15)  # within the timeout of a receiver
            rows = await other.fetch("SELECT id FROM outbox ORDER BY id FOR UPDATE SKIP LOCKED")
            self.lockable = [row[0] for row in rows]
            self.looks += 1


async def test_no_transaction_or_row_lock_is_open_while_a_receiver_runs(
    database: str, connection: asyncpg.Connection
) -> None:
    written = await write(connection)
    witness = Witness(database)

    pipeline = await drain_once(database, Recorder(witness))

    assert (witness.looks, pipeline.totals()["delivered"]) == (1, 1)
    assert witness.lockable == [written]


async def test_no_transaction_is_open_while_the_receiver_of_a_retry_runs(
    database: str, connection: asyncpg.Connection
) -> None:
    written = await write(connection)
    await drain_once(database, Recorder(failing()))
    await make_due(connection)
    witness = Witness(database)

    pipeline = await drain_once(database, Recorder(witness))

    assert (witness.looks, pipeline.totals()["delivered"]) == (1, 1)
    assert witness.lockable == [written]


async def test_no_transaction_is_open_while_a_receiver_runs_in_prepared_mode(
    database: str, connection: asyncpg.Connection
) -> None:
    await connection.execute(
        "INSERT INTO outboxd.worker (pid, host, version, silo_mode, outboxes, died_at)"
        " VALUES (1, 'gone', '0', 'monolith', '[]', now())"
    )
    written = await write(connection)
    witness = Witness(database)

    pipeline = await drain_once(database, Recorder(witness))

    assert (witness.looks, pipeline.totals()["delivered"]) == (1, 1)
    assert witness.lockable == [written]


async def test_a_drain_without_failures_writes_nothing_but_one_delete_a_message(
    database: str, connection: asyncpg.Connection
) -> None:
    await write_many(connection, 120, shards=30)
    before = await _rows_written(connection)

    await drain_once(database, Recorder())

    async def deleted() -> bool:
        await connection.execute("SELECT pg_stat_clear_snapshot()")
        after = await _rows_written(connection)
        changes = {key: count - before[key] for key, count in after.items() if count != before[key]}
        # Each daemon adds and deletes its row among the workers, once.
        assert changes == {("outbox", "deleted"): 120, ("worker", "inserted"): 1, ("worker", "deleted"): 1}
        return True

    await eventually(deleted)


async def _rows_written(connection: asyncpg.Connection) -> dict[tuple[str, str], int]:
    await connection.execute("SELECT pg_stat_force_next_flush()")
    rows = await connection.fetch(
        "SELECT relname, n_tup_ins AS inserted, n_tup_upd AS updated, n_tup_del AS deleted FROM pg_stat_user_tables"
    )
    return {(row[0], kind): row[kind] for row in rows for kind in ("inserted", "updated", "deleted")}
