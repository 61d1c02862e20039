"""Nobody who acts waits long for a lock, or calls the database away because of it."""

from __future__ import annotations

import datetime as dt
from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import pytest

from outboxd import acts, errors, setting, switching
from outboxd.inspection import inspect_table
from outboxd.switching import By, Target
from tests.drains import configure, connected

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config

ME = By("ada")
FOR_A_WHILE = By("ada", expires=dt.timedelta(hours=1))
Act = Callable[["asyncpg.Connection", "Config"], Awaitable[object]]
CATEGORIES = "outbox.disabled_categories"
LOCKED: dict[str, tuple[str, Act]] = {
    "pause": (
        "outboxd.pause",
        lambda connection, config: switching.add_pauses(connection, config, [Target(kind="category", category=1)], ME),
    ),
    "resume": ("outboxd.pause", lambda connection, config: switching.end_pauses(connection, config, [1], ME)),
    "lift": ("outboxd.pause", lambda connection, config: switching.end_pauses(connection, config, [1], FOR_A_WHILE)),
    "set": ("outboxd.option", lambda connection, config: setting.set_option(connection, config, CATEGORIES, "[]", ME)),
    "unset": ("outboxd.option", lambda connection, config: setting.unset_option(connection, config, CATEGORIES, ME)),
    "unset for a while": (
        "outboxd.option",
        lambda connection, config: setting.unset_option(connection, config, CATEGORIES, FOR_A_WHILE),
    ),
    "retry": ("outbox", lambda connection, config: has_messages(connection, config)),
}


async def has_messages(connection: asyncpg.Connection, config: Config) -> bool:
    table = await inspect_table(connection, config.outboxes[0])
    return await acts.has_messages(connection, config, acts.Stuck(config.outboxes[0], table, (0, 1)))


@pytest.mark.parametrize(("table", "act"), LOCKED.values(), ids=LOCKED)
async def test_nobody_waits_long_for_a_lock(
    database: str,
    connection: asyncpg.Connection,
    monkeypatch: pytest.MonkeyPatch,
    table: str,
    act: Act,
) -> None:
    monkeypatch.setattr(acts, "LOCK_TIMEOUT_S", 0.2)
    await connection.execute("INSERT INTO outboxd.pause (kind, category) VALUES ('category', 1)")
    await connection.execute("INSERT INTO outboxd.option (key, value) VALUES ($1, '[]')", CATEGORIES)
    async with connected(database) as other, other.transaction():
        await other.execute(f"LOCK TABLE {table} IN ACCESS EXCLUSIVE MODE")
        with pytest.raises(errors.StatementFailed, match="lock timeout") as caught:
            await act(connection, configure())

    assert caught.value.hint.startswith("Another session has locked it")
