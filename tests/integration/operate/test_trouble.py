"""The database with all kinds of trouble has the trouble that it is for."""

from __future__ import annotations

from typing import TYPE_CHECKING

from tests.drains import failures, remaining
from tests.trouble import ATTEMPTS, DEEP, DEEP_ROWS, INVISIBLE

if TYPE_CHECKING:
    from tests.trouble import Trouble


async def test_every_kind_of_trouble_is_there(trouble: Trouble) -> None:
    connection = trouble.connection
    failed = await failures(connection)
    backoff_s = await connection.fetchval(
        "SELECT min(extract(epoch FROM scheduled_for - now())) FROM outbox WHERE scheduled_for > now()"
    )
    deep = await connection.fetchval("SELECT count(*) FROM outbox WHERE shard_identifier = $1", DEEP)
    buried = await connection.fetch("SELECT outbox, attempts, reason FROM outboxd.dead_letter")
    invisible = await connection.fetchval("SELECT count(*) FROM outbox WHERE shard_identifier = $1", INVISIBLE)
    locks = await connection.fetchval("SELECT count(*) FROM pg_locks WHERE pid = $1", trouble.blocker)

    assert sorted(row["shard_identifier"] for row in failed) == ["10", "21", "3", "4", "9"]
    assert {row["attempts"] for row in failed} == {ATTEMPTS}
    assert backoff_s > 30 * 60
    assert deep == DEEP_ROWS
    assert sorted((row["outbox"], row["attempts"]) for row in buried) == [("control", 1), ("region", 1), ("region", 3)]
    assert len(await remaining(connection, "control_outbox")) == 6
    assert invisible == 0
    assert locks > 0
