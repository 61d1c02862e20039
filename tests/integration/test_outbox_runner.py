"""`outbox_runner`: an application's test delivers what it wrote, at the end of a block."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest

from outboxd import Message, OutboxContextError, OutboxFlushError, OutboxRecursionLimitError, RetryLater, receiver
from outboxd.load import load
from outboxd.migrate import migrate
from outboxd.producer import Producer
from outboxd.testing import ROUNDS_MAX, outbox_runner

if TYPE_CHECKING:
    from pathlib import Path

    import asyncpg

CONFIG = """
[[outbox]]
name = "main"
table = "outbox"
[scopes.ACCOUNT]
value = 1
[categories.ACCOUNT_UPDATE]
value = 1
scope = "ACCOUNT"
"""


@pytest.fixture
async def config(tmp_path: Path, connection: asyncpg.Connection) -> Path:
    file = tmp_path / "outboxd.toml"
    file.write_text(CONFIG)
    await migrate(connection, load(file, environ={}).config)
    return file


async def write(connection: asyncpg.Connection, shard: int = 1, object_: int = 1, due_in: str = "0 s") -> None:
    await connection.execute(
        "INSERT INTO outbox (shard_scope, shard_identifier, category, object_identifier, scheduled_for)"
        " VALUES (1, $1, 1, $2, now() + $3::text::interval)",
        shard,
        object_,
        due_in,
    )


async def test_everything_that_is_due_is_delivered_when_the_block_ends(
    config: Path, database: str, connection: asyncpg.Connection
) -> None:
    seen: list[Message] = []

    @receiver("ACCOUNT_UPDATE")
    async def collect(message: Message) -> None:
        seen.append(message)

    async with outbox_runner(config, dsn=database, receivers=[collect]):
        await write(connection, shard=1)
        await write(connection, shard=2)
        await write(connection, shard=2)
        await write(connection, shard=3, due_in="1 hour")
        assert seen == []

    assert [(m.shard_identifier, m.coalesced) for m in sorted(seen, key=lambda m: m.id)] == [(1, 1), (2, 2)]
    assert await connection.fetchval("SELECT count(*) FROM outbox") == 1


async def test_the_configuration_is_found_as_the_daemon_finds_it(
    config: Path, database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    (config.parent / "runner_receivers.py").write_text(
        "from outboxd import receiver\nseen = []\n"
        "@receiver('ACCOUNT_UPDATE')\nasync def collect(message):\n    seen.append(message.id)\n"
    )
    config.write_text(CONFIG + '[receivers]\nmodules = ["runner_receivers"]\n')
    monkeypatch.setenv("OUTBOX_CONFIG", str(config))
    monkeypatch.setenv("OUTBOX_DSN", database)

    async with outbox_runner():
        await write(connection)

    import runner_receivers  # type: ignore[import-not-found]

    assert len(runner_receivers.seen) == 1


async def test_messages_that_receivers_write_are_delivered_too(
    config: Path, database: str, connection: asyncpg.Connection
) -> None:
    seen: list[object] = []

    @receiver("ACCOUNT_UPDATE")
    async def cascade(message: Message) -> None:
        seen.append(message.shard_identifier)
        if isinstance(message.shard_identifier, int) and message.shard_identifier < 5:
            await write(connection, shard=message.shard_identifier + 1)

    async with outbox_runner(config, dsn=database, receivers=[cascade]):
        await write(connection, shard=1)

    assert seen == [1, 2, 3, 4, 5]


async def test_a_receiver_that_raises_ends_the_block_with_its_message(
    config: Path, database: str, connection: asyncpg.Connection
) -> None:
    @receiver("ACCOUNT_UPDATE")
    async def refuse(message: Message) -> None:
        raise RetryLater(60, "the index is away")

    with pytest.raises(OutboxFlushError, match="the index is away") as raised:
        async with outbox_runner(config, dsn=database, receivers=[refuse]):
            await write(connection, object_=7)

    assert raised.value.message is not None
    assert raised.value.message.object_identifier == 7
    assert await connection.fetchval("SELECT count(*) FROM outbox WHERE scheduled_for > now()") == 1


async def test_receivers_that_write_for_ever_end_in_an_error(
    config: Path, database: str, connection: asyncpg.Connection
) -> None:
    calls = 0

    @receiver("ACCOUNT_UPDATE")
    async def echo(message: Message) -> None:
        nonlocal calls
        calls += 1
        await write(connection)

    with pytest.raises(OutboxRecursionLimitError, match=str(ROUNDS_MAX)):
        async with outbox_runner(config, dsn=database, receivers=[echo]):
            await write(connection)

    assert 1 < calls <= ROUNDS_MAX


async def test_a_block_that_raises_drains_nothing(config: Path, database: str, connection: asyncpg.Connection) -> None:
    @receiver("ACCOUNT_UPDATE")
    async def never(message: Message) -> None:
        raise AssertionError("delivered")

    async def fails() -> None:
        async with outbox_runner(config, dsn=database, receivers=[never]):
            await write(connection)
            raise KeyError

    with pytest.raises(KeyError):
        await fails()

    assert await connection.fetchval("SELECT count(*) FROM outbox") == 1


async def test_a_block_that_ends_inside_a_context_is_an_error(
    config: Path, database: str, connection: asyncpg.Connection
) -> None:
    """Nothing of it is committed: a test would see nothing delivered, and pass."""
    producer = Producer(load(config, environ={"OUTBOX_DSN": database}))
    async with producer.context(connection) as outbox:
        with pytest.raises(OutboxContextError, match="not committed yet"):
            async with outbox_runner(config, dsn=database):
                await outbox.save("ACCOUNT_UPDATE", shard_identifier=1, object_identifier=1)
