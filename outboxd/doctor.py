"""
`outboxd doctor`: the checks of a stuck system, in the order in which somebody would make them, and a verdict.

Each check asks a bounded question with a timeout. One that cannot be made is a finding, and the next one is made all
the same; only without a database, or without its schema, is there nothing to look at.
"""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd import (
    check,
    contract,
    errors,
    inspection,
    load,
    privileges,
    query,
    setting,
    sql,
    switching,
    symptoms,
    watermark,
)
from outboxd.budget import FIRST_ROWS, ROWS_LOOKED_AT_MAX
from outboxd.check_table import check_outbox
from outboxd.claims import DEATH_COUNTS_FOR, SHARD_CLASS, WORKER_CLASS
from outboxd.display import counted
from outboxd.explain import LOCK_CLASSES
from outboxd.findings import Finding, count, exit_code, lines_of
from outboxd.option_keys import canonical_sql
from outboxd.query import Query

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Iterator

    import asyncpg

    from outboxd.config import Config, OutboxConfig
    from outboxd.findings import Level
    from outboxd.load import Loaded

_STATEMENTS = sql.load("doctor.sql")
_LOAD = sql.load("backfill.sql")
_HOLDERS = sql.without_header(sql.load("sample.sql")["holders"])

CHECK_S_MAX = 5.0
ROWS_MAX = 10_000
SHARDS_MAX = 1_000
OBJECTS_MAX = 20
GLOBAL = ("daemons", "horizon")
BY_OUTBOX = ("locks", "lag", "backoff", "failures", "table")
_LOOKS_INTO_TABLE = ("lag", "backoff", "table")
_LOOKS_UP = ("lag", "backoff", "failures")
_VALUES = {
    "shard_class": SHARD_CLASS,
    "worker_class": WORKER_CLASS,
    "rows_max": ROWS_MAX,
    "shards_max": SHARDS_MAX,
    "objects_max": OBJECTS_MAX,
    "death_counts_s": int(DEATH_COUNTS_FOR.total_seconds()),
}

ORDER = (
    "configuration",
    "database",
    "daemons",
    "claims",
    "switches",
    "locks",
    "backoff",
    "failures",
    "receivers",
    "tables",
    "vacuum",
    "sequence",
    "clock",
    "pooler",
    "redis",
    "lag",
)
"""The checks, as they are made."""


@dataclass
class Report:
    """
    What was found, by check.

    Attributes:
        is_blind: There was nothing to look at: no database, no schema, no configuration.
    """

    found: dict[str, list[Finding]] = field(default_factory=lambda: {name: [] for name in ORDER})
    is_blind: bool = False

    @property
    def findings(self) -> list[Finding]:
        """All of them, in order."""
        return [finding for each in self.found.values() for finding in each]

    @property
    def exit_code(self) -> int:
        """0: no error; 1: something is wrong; 69 or 78: there was nothing to look at."""
        code = exit_code(self.findings)
        return code if self.is_blind else min(code, 1)

    @property
    def verdict(self) -> str:
        """Return one sentence."""
        if self.is_blind:
            return "cannot look: begin with the first error"
        if self.exit_code:
            return f"something is wrong: {count(self.findings)}; begin with the first error"
        warnings = sum(finding.level == "warning" for finding in self.findings)
        return f"no errors, {counted(warnings, 'warning')}" if warnings else "all is well"

    def as_json(self) -> dict[str, Any]:
        """Return the JSON document."""
        listed = [{"check": name, **each.as_json()} for name, found in self.found.items() for each in found]
        return {"verdict": self.verdict, "exit_code": self.exit_code, "findings": listed}

    def lines(self) -> list[str]:
        """Write it for people, the verdict last."""
        return [*(line for finding in self.findings for line in lines_of(finding)), f"verdict: {self.verdict}"]


async def examine(prepared: check.Prepared) -> Report:
    """Make every check."""
    report = Report()
    loaded = prepared.loaded
    if loaded is None:
        report.found["configuration"] += prepared.configuration
        report.is_blind = True
        return report
    connecting: list[Finding] = []
    async with check.connected(loaded, connecting) as connection:
        report.is_blind = connection is None
        report.found["database" if connection is None else "pooler"] += connecting
        if connection is not None:
            await _Examination(connection, loaded, report).make(prepared.receivers)
    return report


class _Examination:
    """One run over a database that answers."""

    def __init__(self, connection: asyncpg.Connection, loaded: Loaded, report: Report) -> None:
        self.connection = connection
        self.loaded = loaded
        self.config = loaded.config
        self.found = report.found
        self.report = report
        self.rows: dict[tuple[str, str], list[dict[str, Any]]] = {}

    async def make(self, receivers: list[Finding]) -> None:
        """Look at the database; then, if it is migrated, at everything else, to which belongs what *receivers* says."""
        await self._server()
        await self._schema()
        if any(finding.level == "error" for finding in self.found["database"]):
            self.report.is_blind = True
            return
        missing = await self._missing()
        for name, outbox, question in questions(self.config):
            if outbox is None or outbox.name not in missing:
                await self._ask(name, outbox, question)
        self._conclude()
        async with self._bounded("daemons"):
            await self._daemon_roles()
        self.found["receivers"] += receivers
        for outbox in self.config.outboxes:
            async with self._bounded("tables"):
                self.found["tables"] += await check_outbox(self.connection, self.config, outbox)
        await self._redis()

    async def _server(self) -> None:
        async with self._bounded("database"):
            for finding in await check.check_server(self.connection):
                self.found["clock" if finding.subject == "clock" else "database"].append(finding)

    async def _schema(self) -> None:
        """Find out whether this role may look, and whether what it is to look at is there."""
        async with self._bounded("database"):
            role = await self.connection.fetchval("SELECT current_user::text")
            if grants := await privileges.missing_grants(self.connection, self.config, role, "reader"):
                text = f"role {role} lacks what it needs to look at everything"
                self.found["database"].append(Finding("error", "privileges", text, "\n".join(grants)))
                return
            await inspection.require_schema(self.connection, self.config)
            self.found["database"].append(
                Finding("ok", "schema", f"{self.config.schema}: the newest migration is applied")
            )

    @contextlib.asynccontextmanager
    async def _bounded(self, name: str) -> AsyncIterator[None]:
        """Run statements with the check's timeout; what fails becomes a finding."""
        try:
            with inspection.translated(f"checking {name}"):
                async with self.connection.transaction(readonly=True):
                    await self.connection.execute(f"SET LOCAL statement_timeout = {int(CHECK_S_MAX * 1000)}")
                    yield
        except errors.OutboxdError as exc:
            self.found[name] += check.error_findings(name, exc)

    async def _daemon_roles(self) -> None:
        """Look whether the roles of the living daemons may do what they do: one may have lost a privilege since."""
        rows = [row for row in self.rows.get(("daemons", ""), []) if symptoms.is_alive(row)]
        for role in dict.fromkeys(row["role"] for row in rows if row["role"]):
            own = [row for row in rows if row["role"] == role]
            drained = [o for o in self.config.outboxes if any(symptoms.drains(row, o) for row in own)]
            if drained:  # of each silo its own: a daemon of the other one needs nothing here
                config = msgspec.structs.replace(self.config, outbox=drained)
                grants = await privileges.missing_grants(self.connection, config, role, "daemon")
                self.found["daemons"] += symptoms.unprivileged(own[0], grants)

    async def _missing(self) -> set[str]:
        """Name the outboxes whose table is not there, which is said once, where tables are looked at."""
        missing = set()
        for outbox in self.config.outboxes:
            with contextlib.suppress(errors.OutboxdError):
                if await inspection.read_relation(self.connection, outbox.table) is None:
                    missing.add(outbox.name)
        return missing

    async def _ask(self, name: str, outbox: OutboxConfig | None, question: Query) -> None:
        """Ask, and keep the rows; a table that is locked is not waited for."""
        key = outbox.name if outbox is not None else ""
        if name in _LOOKS_INTO_TABLE and any(row["granted"] for row in self.rows.get(("locks", key), [])):
            return
        try:
            doing = f"checking {name}{f' of outbox {key}' if key else ''}"
            self.rows[name, key] = await query.fetch(self.connection, question, doing, timeout_s=CHECK_S_MAX)
        except errors.OutboxdError as exc:
            # What only takes too long says nothing of the system.
            level: Level = "warning" if isinstance(exc, errors.StatementFailed) else "error"
            subject = f"outbox {key}" if key else name
            found = [replace(each, level=level) for each in check.error_findings(subject, exc)]
            self.found[_CHECK_OF.get(name, name)] += found

    def _conclude(self) -> None:
        config, rows = self.config, self.rows
        lags = {o.name: rows["lag", o.name][0] for o in config.outboxes if rows.get(("lag", o.name))}
        if ("daemons", "") in rows:
            self.found["daemons"] += symptoms.daemons(rows["daemons", ""], config)
            self.found["claims"] += symptoms.claims(rows["daemons", ""], lags, config)
        if ("switches", "") in rows and ("options", "") in rows:
            self.found["switches"] += symptoms.switches(rows["switches", ""], rows["options", ""])
        if ("horizon", "") in rows:
            self.found["vacuum"] += symptoms.horizon(rows["horizon", ""])
        for outbox in config.outboxes:
            self._conclude_outbox(outbox)
            if outbox.name in lags:
                self.found["lag"] += symptoms.lag(lags[outbox.name], outbox, config.doctor.lag_slo_s)

    def _conclude_outbox(self, outbox: OutboxConfig) -> None:
        rows = {name: self.rows[name, outbox.name] for name in BY_OUTBOX if (name, outbox.name) in self.rows}
        self.found["locks"] += symptoms.locks(rows.get("locks", []), outbox)
        if "backoff" in rows:
            self.found["backoff"] += symptoms.backoff(rows["backoff"][0], outbox)
        if "failures" in rows:
            self.found["failures"] += symptoms.failures(rows["failures"], outbox)
        for row in rows.get("table", []):
            self.found["tables"] += symptoms.table(row, outbox)
            self.found["sequence"] += symptoms.sequence(row, outbox)

    async def _redis(self) -> None:
        if self.config.backfill.state != "redis":
            return
        try:
            await watermark.ping(load.read_secret(self.loaded, "redis_url"))
            self.found["redis"].append(Finding("ok", "redis", "answers"))
        except errors.OutboxdError as exc:
            self.found["redis"] += check.error_findings("redis", exc)


_CHECK_OF = {"table": "tables", "horizon": "vacuum", "options": "switches"}


def questions(config: Config) -> Iterator[tuple[str, OutboxConfig | None, Query]]:
    """Yield what is asked, in order: the statement's name, the outbox that it is about (None: all), the question."""
    yield "switches", None, switching.switched_off_query(config, rows_max=switching.ROWS_READ_MAX)
    yield "options", None, setting.options_query(config, unset_too=False)
    for name in GLOBAL:
        yield name, None, _question(config, config.outboxes[0], name)
    for outbox in config.outboxes:
        for name in BY_OUTBOX:
            yield name, outbox, _question(config, outbox, name)


def _question(config: Config, outbox: OutboxConfig, name: str) -> Query:
    types = contract.configured_types(outbox)
    names = query.names_of(config, outbox) | {
        "regclass": f"{sql.literal(sql.quote_qualified(outbox.table))}::regclass",
        "switches": switching.switches(config),
        "canonical": canonical_sql,
        "holders": _HOLDERS,
    }
    if name == "lag":
        names |= _measures(names, types)
    header, statement = sql.split_header(_STATEMENTS[name])
    of = f"outbox {outbox.name}: " if name in BY_OUTBOX else ""
    return Query(
        about=f"{of}{name}\n{_for_people(header)}",
        statement=statement,
        values={key: value for key, value in _VALUES.items() if f"{{value:{key}}}" in statement},
        names=names,
        shard_columns=types,
        numbers=query.numbers_of(config) if name in _LOOKS_UP else [LOCK_CLASSES] if name == "daemons" else [],
        by_index=name in _LOOKS_UP,
    )


def _for_people(header: str) -> str:
    """Return what a header says of the question, without what it says to engineers."""
    return "\n".join(line[3:] for line in header.splitlines() if not line.startswith(("-- returns", "-- index")))


def _measures(names: dict[str, query.Filling], types: dict[str, str]) -> dict[str, Query]:
    """Return the drain's own measures of its load, with what is switched off looked up instead of passed."""
    looked_up = {
        **names,
        "categories_off": "ARRAY(SELECT category FROM categories_off)",
        "scopes_off": "ARRAY(SELECT shard_scope FROM shards_off ORDER BY 1, shard_identifier, region_name)",
        "identifiers_off": "ARRAY(SELECT shard_identifier FROM shards_off ORDER BY shard_scope, 1, region_name)",
        "regions_off": "ARRAY(SELECT region_name FROM shards_off ORDER BY shard_scope, shard_identifier, 1)",
        "looked_at_max": str(ROWS_LOOKED_AT_MAX),
    }

    def part(name: str, **more: query.Filling) -> Query:
        return Query(about="", statement=sql.without_header(_LOAD[name]), names=looked_up | more, shard_columns=types)

    deliverable = part("deliverable")
    return {
        "load": part("load", rows_max=str(ROWS_MAX), deliverable=deliverable),
        "lag_of_first": part("lag_of_first", rows_max=str(FIRST_ROWS), deliverable=deliverable),
    }
