"""
Run-time options and pauses: the kill switches, as one value that the drain asks.

Read from `outboxd.option` and `outboxd.pause` every two seconds by the daemon; obeyed before a shard is claimed,
while its messages are read, and before a delivery (I11).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

import structlog

from outboxd import display, option_keys, sql
from outboxd.option_keys import canonical
from outboxd.session import Session

if TYPE_CHECKING:
    import datetime as dt

    from outboxd.config import Config

log = structlog.get_logger()

REFRESH_INTERVAL_S = 2.0
SHARDS_NAMED_MAX = 5

_STATEMENTS = sql.load("options.sql")


class Pause(NamedTuple):
    """One row of `outboxd.pause` that counts now, with the columns of the statement `pauses`."""

    id: int
    kind: str
    outbox: str | None
    category: int | None
    shard_scope: int | None
    shard_identifier: str | None
    region_name: str | None
    table_name: str | None
    author: str | None
    reason: str | None
    expires_at: dt.datetime | None

    def about(self) -> str:
        """Say by whom, why, and until when."""
        return about(f"pause {self.id}", self.author, self.reason, self.expires_at)


def about(what: str, author: str | None, reason: str | None, until: dt.datetime | str | None) -> str:
    """Say of a pause or an option by whom it is, why, and until when."""
    by = f" by {display.one_line(author)}" if author else ""
    end = f", until {display.moment(until)}" if until else ""
    why = f": {display.one_line(reason)}" if reason else ""
    return f"{what}{by}{end}{why}"


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
        text = canonical(identifier)
        return (scope, text, region) in self.shards or (scope, text, None) in self.shards

    def named(self, config: Config) -> dict[str, list[str]]:
        """Name what is off, in order; an empty list where nothing of a kind is."""
        scopes = {scope.value: name for name, scope in config.scopes.items()}
        categories = {category.value: name for name, category in config.categories.items()}
        ordered = sorted((scopes.get(scope, str(scope)), len(key), key, region) for scope, key, region in self._flat())
        return {
            "outboxes": sorted(self.outboxes),
            "categories": sorted(categories.get(number, str(number)) for number in self.categories),
            "shards": [f"{scope} {key}{f' in {region}' if region else ''}" for scope, _, key, region in ordered],
        }

    def _flat(self) -> Iterable[tuple[int, str, str]]:
        return ((scope, key, region or "") for scope, key, region in self.shards)


@dataclass(frozen=True, slots=True)
class Gates:
    """
    What options and pauses say of backfills.

    Attributes:
        versions: Highest version that a table may be walked with.
        regions: To which a table's walk is limited.
        pauses: Of walks; without a table name, of every one.
    """

    versions: dict[str, int] = field(default_factory=dict)
    regions: dict[str, tuple[str, ...]] = field(default_factory=dict)
    pauses: tuple[Pause, ...] = ()

    def pauses_of(self, table: str) -> list[Pause]:
        """Return the pauses that hold the walk of this table, oldest first."""
        return [pause for pause in self.pauses if pause.table_name in (None, table)]

    def named(self) -> list[str]:
        """Name the tables whose walk is paused, in order; `every table` for all of them."""
        return sorted({pause.table_name or "every table" for pause in self.pauses})


NOTHING_OFF = Switches()
"""What is off almost always; compared by identity where it is asked for each message."""


class SwitchBoard:
    """
    Keeps the switches fresh.

    Args:
        config: Names of scopes, categories and their options.
        dsn: Tells where to connect.
        session: The one to use; None: one of its own.
    """

    def __init__(self, config: Config, dsn: Callable[[], str], session: Session | None = None) -> None:
        self.config = config
        self.session = session or Session(dsn, name="options", lock_timeout_s=2, statement_timeout_s=5)
        renderer = sql.Renderer({"schema": sql.quote(config.schema)}, {})
        self._sql = {key: renderer.render(statement) for key, statement in _STATEMENTS.items()}
        self.now = NOTHING_OFF
        self.gates = Gates()
        self._is_read = False
        self._complaints: set[str] = set()

    async def refresh(self) -> None:
        """
        Read options and pauses.

        Raises:
            StoreUnavailable, SchemaError, StatementFailed: They stay as they were.
        """
        rows = await self.session.fetch("reading options", self._sql["options"])
        pauses = [Pause(*row) for row in await self.session.fetch("reading pauses", self._sql["pauses"])]
        complaints: set[str] = set()
        options = _Options(self.config, {row[0]: row[1] for row in rows}, complaints)
        switches = _add_up(options, pauses)
        self.gates = Gates(
            versions=options.by_table("version"),
            regions={table: tuple(names) for table, names in options.by_table("regions").items()},
            pauses=tuple(pause for pause in pauses if pause.kind == "backfill"),
        )
        for complaint in sorted(complaints - self._complaints):
            log.warning("options.ignored", problem=complaint)
        self._complaints = complaints
        has_changed, self.now = switches != self.now, switches
        if has_changed and self._is_read:  # what is off at the start is no news
            named = switches.named(self.config)
            log.warning("options.switched", **(named | {"shards": len(named["shards"])}))
        self._is_read = True

    def switched_off(self) -> dict[str, Any]:
        """Return what is off now, as the log says it: names, a count of shards and the first of them; or nothing."""
        if self.now == NOTHING_OFF and not self.gates.pauses:
            return {}
        named = self.now.named(self.config)
        shards = named.pop("shards")
        first = shards[:SHARDS_NAMED_MAX]
        return {**named, "shards": len(shards), "first_shards": first, "backfills": self.gates.named()}

    async def close(self) -> None:
        """Close the session."""
        await self.session.close()


class _Options:
    """The options that are set, read by key; what means nothing is added to *complaints*."""

    def __init__(self, config: Config, values: Mapping[str, str], complaints: set[str]) -> None:
        self.config = config
        self._read: list[tuple[option_keys.Key, Any]] = []
        for name, key in option_keys.known(config).items():
            if name in values:
                meaning, problems = key.read(values[name])
                consequence = "; the walk waits" if key.kind == "version" else ""
                complaints.update(problem + consequence for problem in problems)
                self._read.append((key, meaning))

    def names(self, kind: option_keys.Kind) -> set[str]:
        """Return what the lists of a kind name."""
        return {name for key, names in self._read if key.kind == kind for name in names}

    def shards(self) -> set[tuple[int, str, str | None]]:
        """Return the shards, as `Switches` has them: of every region."""
        return {
            (scope, identifier, None)
            for key, identifiers in self._read
            if key.kind == "shard"
            for scope in key.scopes
            for identifier in identifiers
        }

    def by_table(self, kind: option_keys.Kind) -> dict[str, Any]:
        """Return what the options of a kind say of each table."""
        return {key.table: meaning for key, meaning in self._read if key.kind == kind}


def _add_up(options: _Options, pauses: Sequence[Pause]) -> Switches:
    """Add options and pauses up: neither overwrites the other."""
    outboxes = options.names("outbox")
    categories = {options.config.categories[name].value for name in options.names("category")}
    shards = options.shards()
    for pause in pauses:
        if pause.kind == "outbox" and pause.outbox is not None:
            outboxes.add(pause.outbox)
        elif pause.kind == "category" and pause.category is not None:
            categories.add(pause.category)
        elif pause.kind == "shard" and pause.shard_scope is not None:
            shards.add((pause.shard_scope, canonical(pause.shard_identifier), pause.region_name))
    if not (outboxes or categories or shards):
        return NOTHING_OFF
    return Switches(frozenset(outboxes), frozenset(categories), frozenset(shards))
