"""
Run-time options and pauses: the kill switches, as one value that the drain asks.

Read from `outboxd.option` and `outboxd.pause` every two seconds by the daemon; obeyed before a shard is claimed,
while its messages are read, and before a delivery (I11).
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import structlog

from outboxd import sql, suggest
from outboxd.session import Session

if TYPE_CHECKING:
    from outboxd.config import Config

log = structlog.get_logger()

REFRESH_INTERVAL_S = 2.0

_STATEMENTS = sql.load("options.sql")


@dataclass(frozen=True, slots=True)
class Switches:
    """
    What is switched off now.

    `shards` holds (scope, identifier as text, region or None); None as region covers every region.
    """

    outboxes: frozenset[str] = frozenset()
    categories: frozenset[int] = frozenset()
    shards: frozenset[tuple[int, str, str | None]] = field(default=frozenset())

    def shard_off(self, scope: int, identifier: Any, region: str | None) -> bool:
        """Whether this shard is switched off."""
        if not self.shards:
            return False
        text = str(identifier)
        return (scope, text, region) in self.shards or (scope, text, None) in self.shards


@dataclass(frozen=True, slots=True)
class Gates:
    """
    What options and pauses say of backfills.

    Attributes:
        versions: Highest version that a table may be walked with.
        regions: To which a table's walk is limited.
        paused: Tables whose walk is paused; None among them: all.
    """

    versions: dict[str, int] = field(default_factory=dict)
    regions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    paused: frozenset[str | None] = frozenset()

    def is_paused(self, table: str) -> bool:
        """Whether the walk of this table is paused."""
        return table in self.paused or None in self.paused


NOTHING_OFF = Switches()
"""What is off almost always; compared by identity where it is asked for each message."""


class SwitchBoard:
    """
    Keeps the switches fresh.

    Args:
        config: Names of scopes, categories and their options.
        dsn: Tells where to connect.
    """

    def __init__(self, config: Config, dsn: Callable[[], str]) -> None:
        self.config = config
        self.session = Session(dsn, name="options", lock_timeout_s=2, statement_timeout_s=5)
        renderer = sql.Renderer({"schema": sql.quote(config.schema)}, {})
        self._sql = {key: renderer.render(statement) for key, statement in _STATEMENTS.items()}
        self.now = NOTHING_OFF
        self.gates = Gates()
        self._complaints: set[str] = set()

    async def refresh(self) -> None:
        """
        Read options and pauses.

        Raises:
            StoreUnavailable, SchemaError, StatementFailed: They stay as they were.
        """
        options = await self.session.fetch("reading options", self._sql["options"])
        pauses = await self.session.fetch("reading pauses", self._sql["pauses"])
        complaints: set[str] = set()
        values = {row[0]: row[1] for row in options}
        switches = self._combine(values, [tuple(row) for row in pauses], complaints)
        self.gates = self._gates(values, frozenset(row[6] for row in pauses if row[0] == "backfill"), complaints)
        for complaint in sorted(complaints - self._complaints):
            log.warning("options.ignored", problem=complaint)
        self._complaints = complaints
        if switches != self.now:
            log.warning(
                "options.switched",
                outboxes=sorted(switches.outboxes),
                categories=sorted(switches.categories),
                shards=len(switches.shards),
            )
            self.now = switches

    async def close(self) -> None:
        """Close the session."""
        await self.session.close()

    def _combine(self, options: dict[str, str], pauses: Iterable[tuple[Any, ...]], complaints: set[str]) -> Switches:
        """Add options and pauses up: neither overwrites the other. What means nothing is added to *complaints*."""
        config = self.config
        outboxes = _names(options, "outbox.disabled_outboxes", {o.name for o in config.outbox}, complaints)
        names = _names(options, "outbox.disabled_categories", set(config.categories), complaints)
        categories = {config.categories[name].value for name in names}
        shards: set[tuple[int, str, str | None]] = set()
        for name, scope in config.scopes.items():
            key = scope.disabled_shards_option or f"outbox.disabled_shards.{name}"
            shards |= {(scope.value, _canonical(identifier), None) for identifier in _list_of(options, key, complaints)}
        for kind, outbox, category, scope_value, identifier, region, _table in pauses:
            if kind == "outbox":
                outboxes.add(outbox)
            elif kind == "category":
                categories.add(category)
            elif kind == "shard":
                shards.add((scope_value, _canonical(identifier), region))
        if not (outboxes or categories or shards):
            return NOTHING_OFF
        return Switches(frozenset(outboxes), frozenset(categories), frozenset(shards))

    def _gates(self, options: dict[str, str], paused: frozenset[str | None], complaints: set[str]) -> Gates:
        versions: dict[str, int] = {}
        regions: dict[str, tuple[str, ...]] = {}
        for table in (model.table for model in self.config.model):
            key = f"outbox_replication.{table}.replication_version"
            if key in options:
                versions[table] = _version(options, key, complaints)
            key = f"outbox_replication.{table}.backfill.target_regions"
            if key in options:
                regions[table] = tuple(str(name) for name in _list_of(options, key, complaints))
        return Gates(versions, regions, paused)


def _version(options: dict[str, str], key: str, complaints: set[str]) -> int:
    """Read a version; what is none holds the walk back, because somebody meant to gate it."""
    try:
        value = json.loads(options[key])
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, int) and not isinstance(value, bool):
        return value
    complaints.add(f"{key}: expected a whole number, got {options[key][:60]}; the walk waits")
    return 0


def _canonical(identifier: Any) -> str:
    """Write an identifier as PostgreSQL does: a uuid in lower case with dashes, a whole number without a point."""
    if isinstance(identifier, float) and identifier.is_integer():
        return str(int(identifier))
    try:
        return str(uuid.UUID(str(identifier)))
    except ValueError:
        return str(identifier)


def _names(options: dict[str, str], key: str, known: set[str], complaints: set[str]) -> set[str]:
    names = {str(name) for name in _list_of(options, key, complaints)}
    complaints |= {f"{key}: unknown name {name}{suggest.nearest(name, known)}" for name in names - known}
    return names & known


def _list_of(options: dict[str, str], key: str, complaints: set[str]) -> list[Any]:
    """Read a list option; anything else switches nothing off, and is complained of."""
    try:
        value = json.loads(options.get(key, "[]"))
    except (ValueError, RecursionError):
        value = None
    if isinstance(value, list):
        return value
    complaints.add(f"{key}: expected a JSON list, got {options[key][:60]}")
    return []
