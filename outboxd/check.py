"""
`outboxd check`: everything that could keep a daemon from working, each with what to do about it.

It goes as far as it can: a table that is missing does not hide a privilege that is. It changes nothing.
"""

from __future__ import annotations

import contextlib
import datetime as dt
from dataclasses import dataclass
from typing import TYPE_CHECKING

from outboxd import capture, errors, inspection, load, privileges, registry, replicas, session, source, sql
from outboxd.check_table import check_model, check_outbox
from outboxd.findings import Finding

if TYPE_CHECKING:
    from collections.abc import AsyncIterator, Callable, Iterable

    import asyncpg

    from outboxd.config import Config, ModelConfig
    from outboxd.findings import Level
    from outboxd.load import Loaded
    from outboxd.privileges import RoleKind
    from outboxd.registry import Registry

_STATEMENTS = sql.load("check.sql")

VERSION_MIN = 140_000
_PURPOSES: dict[RoleKind, str] = {
    "owner": "migrate",
    "daemon": "run the daemon",
    "producer": "write messages",
    "operator": "pause, retry, bury and drain",
    "reader": "look at everything",
}
CLOCK_OFFSET_MAX_S = 5.0


@dataclass(frozen=True)
class Prepared:
    """What can be looked at without a database; `loaded` is None where the configuration is wrong."""

    loaded: Loaded | None
    configuration: list[Finding]
    receivers: list[Finding]
    replicated: tuple[ModelConfig, ...] = ()
    """Models whose rows the receivers want."""


def prepare(load_configuration: Callable[[], Loaded], *, no_receiver: Level = "warning") -> Prepared:
    """
    Load the configuration and import the receivers; before the event loop runs, because a module may run its own.

    Args:
        load_configuration: Loads it; its ConfigError becomes findings.
        no_receiver: How bad it is that there is none.
    """
    try:
        loaded = load_configuration()
        outboxes = ", ".join(o.name for o in loaded.config.require_outboxes())
    except errors.OutboxdError as exc:
        return Prepared(None, error_findings("configuration", exc), [])
    source = loaded.source or "no file: defaults and environment"
    findings = [Finding("ok", "configuration", f"{source} ({loaded.config.silo_mode}: {outboxes})")]
    findings += [
        Finding("warning", "configuration", f"unknown variable {stranger}", "Correct or unset it.")
        for stranger in loaded.strangers
    ]
    try:
        built = registry.assemble(loaded.config, loaded.folder)
    except errors.OutboxdError as exc:
        return Prepared(loaded, findings, error_findings("receivers", exc))
    replicated = tuple(model for category in built.categories.values() for model in category.sources)
    return Prepared(loaded, findings, _check_receivers(loaded, built, no_receiver), replicated)


async def check(prepared: Prepared, kinds: list[RoleKind], role: str | None) -> list[Finding]:
    """
    Check configuration, receivers, database, tables and privileges.

    Args:
        prepared: Of `prepare`.
        kinds: What the role must be able to do; empty means to run the daemon.
        role: Whose privileges are looked at; None means the one that connects.
    """
    loaded, findings = prepared.loaded, [*prepared.configuration, *prepared.receivers]
    if loaded is None:
        return findings
    async with connected(loaded, findings) as connection:
        if connection is not None:
            try:
                with inspection.translated("checking the database"):
                    findings += await _check_database(connection, loaded.config, kinds or ["daemon"])
                    findings += await _check_replicated(connection, loaded.config, prepared.replicated)
                    findings += await _check_privileges(connection, prepared, kinds or ["daemon"], role)
            except errors.OutboxdError as exc:
                findings += error_findings("connection", exc)
    return findings


def error_findings(subject: str, exc: errors.OutboxdError) -> list[Finding]:
    """Turn an error into findings, one for each problem of the configuration."""
    texts = exc.problems if isinstance(exc, errors.ConfigError) else [str(exc)]
    code = exc.exit_code if exc.exit_code == errors.StoreUnavailable.exit_code else 78
    return [Finding("error", subject, text, exc.hint, code) for text in texts]


def _check_receivers(loaded: Loaded, built: Registry, none: Level) -> list[Finding]:
    """Say loudly when there are no receivers, which is as bad as *none* says."""
    modules = loaded.config.receivers.modules
    if not built.receiver_count:
        text = "NO RECEIVER IS REGISTERED: no message can be delivered, every shard will wait"
        return [Finding(none, "receivers", text, _no_receiver_remedy(modules))]
    findings = [Finding("ok", "receivers", f"{built.receiver_count} registered, from {', '.join(modules)}")]
    bare = sorted(c.name for c in built.categories.values() if not c.receivers)
    if bare and any(o.on_unhandled == "fail" for o in loaded.config.outboxes):
        text = f"no receiver for {', '.join(bare)}: such messages fail and hold up their shards"
        remedy = 'Add a @receiver; or set on_unhandled = "discard" where nobody wants them.'
        findings.append(Finding("warning", "receivers", text, remedy))
    return findings


def _no_receiver_remedy(modules: list[str]) -> str:
    if modules:
        return f'Mark functions with @receiver("CATEGORY") in {", ".join(modules)}.'
    return "Name the modules with your @receiver functions in [receivers] modules."


@contextlib.asynccontextmanager
async def connected(loaded: Loaded, findings: list[Finding]) -> AsyncIterator[asyncpg.Connection | None]:
    """
    Connect as the daemon does: directly where locks are needed, and also through `dsn`.

    Adds what it finds; yields None when there is no connection to go on with.
    """
    connection = plain = None
    if loaded.config.session_dsn:
        plain = await _check_plain(loaded, findings)
    key = "session_dsn" if loaded.config.session_dsn else "dsn"
    try:
        connection = await session.connect(load.read_secret(loaded, key), name="check")
        await session.refuse_pooler(connection)
    except errors.OutboxdError as exc:
        findings += error_findings("connection", exc)
    else:
        findings.append(Finding("ok", "connection", f"{key}: directly to PostgreSQL, no pooler in between"))
    try:
        if plain is not None and connection is not None:
            findings += await _compare(plain, connection)
        yield connection
    finally:
        if connection is not None:
            await session.close_quietly(connection)


async def _check_plain(loaded: Loaded, findings: list[Finding]) -> asyncpg.Record | None:
    """Try `dsn` where a `session_dsn` stands beside it, and tell which database it is; a pooler is welcome there."""
    try:
        connection = await session.connect(load.read_secret(loaded), name="check")
        try:
            with inspection.translated("asking dsn which database it is"):
                identity = await connection.fetchrow(_STATEMENTS["identity"])
        finally:
            await session.close_quietly(connection)
    except errors.OutboxdError as exc:
        findings += error_findings("connection", exc)
        return None
    findings.append(Finding("ok", "connection", "dsn: answers"))
    return identity


async def _compare(plain: asyncpg.Record, connection: asyncpg.Connection) -> list[Finding]:
    try:
        with inspection.translated("asking session_dsn which database it is"):
            if plain == await connection.fetchrow(_STATEMENTS["identity"]):
                return []
    except errors.OutboxdError as exc:
        return error_findings("connection", exc)
    text = "dsn and session_dsn lead to different databases: what is written to one is not delivered"
    return [Finding("error", "connection", text, "Let both lead to the database with the outboxes.")]


async def _check_database(connection: asyncpg.Connection, config: Config, kinds: list[RoleKind]) -> list[Finding]:
    findings = await check_server(connection)
    if kinds != ["producer"]:  # which needs, and may see, nothing of outboxd's own schema
        try:
            await inspection.require_schema(connection, config)
            findings.append(Finding("ok", "schema", f"{config.schema}: the newest migration is applied"))
        except errors.OutboxdError as exc:
            if isinstance(exc, errors.PrivilegeError):  # of the role that connects, which need not be *role*
                own: str = await connection.fetchval("SELECT current_user::text")
                exc.hint = "\n".join(await privileges.missing_grants(connection, config, own, "reader"))
            findings += error_findings("schema", exc)
    tables: dict[int, str] = {}
    for outbox in config.outboxes:
        findings += await check_outbox(connection, config, outbox)
        found = await privileges.find_table(connection, outbox.table)
        if found is not None and tables.setdefault(found["oid"], outbox.name) != outbox.name:
            text = f'outboxes "{tables[found["oid"]]}" and "{outbox.name}" are one table: {found["name"]}'
            findings.append(Finding("error", f"outbox {outbox.name}", text, "Remove one of them."))
    for model in config.model:
        if model.outbox in [o.name for o in config.outboxes]:
            findings += await _check_model(connection, config, model)
    return findings


async def _check_model(connection: asyncpg.Connection, config: Config, model: ModelConfig) -> list[Finding]:
    """Check a model's table, whether it is captured, and whether its walk could be written: key, expressions, types."""
    found = await check_model(connection, model)
    if any(finding.level == "error" for finding in found):
        return found
    if model.capture:
        found += await _check_capture(connection, config, model)
    if not model.replication_version:
        return found
    try:
        walk = await source.inspect_walk(connection, config, model)
        with inspection.translated(f"preparing the walk of {model.table}"):
            await connection.prepare(walk.batch)
    except errors.OutboxdError as exc:
        return error_findings(f"model {model.table}", exc)
    return found


async def _check_replicated(
    connection: asyncpg.Connection, config: Config, models: Iterable[ModelConfig]
) -> list[Finding]:
    """Check that the rows which receivers want can be read."""
    outboxes = {outbox.name: outbox for outbox in config.outboxes}
    findings = []
    for model in models:
        subject = f"model {model.table}"
        if model.outbox not in outboxes or await privileges.find_table(connection, model.table) is None:
            continue  # the latter has been said
        try:
            table = await inspection.read_table(connection, outboxes[model.outbox])
            statements = await replicas.statements_of(connection, model, table.object_type, config.schema)
            with inspection.translated(f"preparing to read rows of {model.table}"):
                await connection.prepare(statements["many"])
            findings.append(Finding("ok", subject, "its rows can be read for the receivers of its messages"))
        except errors.PrivilegeError:
            continue  # said with its GRANT
        except errors.OutboxdError as exc:
            findings += error_findings(subject, exc)
    return findings


async def _check_capture(connection: asyncpg.Connection, config: Config, model: ModelConfig) -> list[Finding]:
    subject = f"model {model.table}"
    try:
        gaps = await capture.gaps(connection, config, model)
    except errors.OutboxdError as exc:
        return error_findings(subject, exc)
    if not gaps:
        return [Finding("ok", subject, "its changes are captured by triggers")]
    return [Finding("error", subject, f"capture: {gap.text}", gap.remedy) for gap in gaps]


async def check_server(connection: asyncpg.Connection) -> list[Finding]:
    """Check version, role and settings of the server, and compare the clocks (subject `clock`)."""
    before = dt.datetime.now(dt.UTC)
    row = await connection.fetchrow(_STATEMENTS["server"])
    assert row is not None
    middle = before + (dt.datetime.now(dt.UTC) - before) / 2
    major = row["version"] // 10_000
    findings = [Finding("ok", "server", f"PostgreSQL {major}, database {row['database']}, role {row['role']}")]
    if row["version"] < VERSION_MIN:
        findings = [Finding("error", "server", f"PostgreSQL {major} is too old", "Upgrade to 14 or later.")]
    if row["in_recovery"]:
        text = "this server is a standby: it cannot be written to"
        remedy = "Connect to the primary (target_session_attrs=read-write)."
        findings.append(Finding("error", "server", text, remedy, errors.StoreUnavailable.exit_code))
    elif row["read_only"]:
        text = f"transactions are read-only by default for role {row['role']} on database {row['database']}"
        remedy = "Set default_transaction_read_only to off: ALTER DATABASE or ALTER ROLE, wherever it was set."
        findings.append(Finding("error", "server", text, remedy, errors.StoreUnavailable.exit_code))
    if not row["autovacuum"]:
        text = "autovacuum is off: dead rows will slow every find down"
        findings.append(Finding("warning", "server", text, "Set autovacuum and track_counts to on."))
    return [*findings, _clock((row["clock"] - middle).total_seconds())]


def _clock(offset_s: float) -> Finding:
    """Compare the clocks. The database's decides every schedule; ours only stamps the log."""
    text = f"the database's clock is {abs(offset_s):.1f} s {'ahead of' if offset_s > 0 else 'behind'} ours"
    if abs(offset_s) <= CLOCK_OFFSET_MAX_S:
        return Finding("info", "clock", text)
    remedy = "Schedules follow the database and stay right; compare log times with care, and look at NTP."
    return Finding("warning", "clock", text, remedy)


async def _check_privileges(
    connection: asyncpg.Connection, prepared: Prepared, kinds: list[RoleKind], role: str | None
) -> list[Finding]:
    name: str = role if role is not None else await connection.fetchval("SELECT current_user::text")
    if not await connection.fetchval(_STATEMENTS["has_role"], name):
        remedy = f"CREATE ROLE {await connection.fetchval(_STATEMENTS['quoted'], name)} LOGIN;"
        return [Finding("error", "privileges", f"there is no role {name}", remedy)]
    findings = [await _privilege_finding(connection, prepared, name, kind) for kind in dict.fromkeys(kinds)]
    return findings + (await _check_activity(connection, prepared, name) if "daemon" in kinds else [])


async def _check_activity(connection: asyncpg.Connection, prepared: Prepared, role: str) -> list[Finding]:
    """Note what the metrics of a daemon will lack; it drains without them."""
    assert prepared.loaded is not None
    if not prepared.loaded.config.http.listen or await connection.fetchval(_STATEMENTS["sees_activity"], role):
        return []
    text = f"role {role} does not see what holds vacuum back: the metrics lack it, and no alert tells of it"
    grant = f"GRANT pg_read_all_stats TO {await connection.fetchval(_STATEMENTS['quoted'], role)};"
    return [Finding("info", "metrics", text, grant)]


async def _privilege_finding(connection: asyncpg.Connection, prepared: Prepared, role: str, kind: RoleKind) -> Finding:
    assert prepared.loaded is not None
    config, purpose = prepared.loaded.config, _PURPOSES[kind]
    sources = [model.table for model in prepared.replicated]
    if grants := await privileges.missing_grants(connection, config, role, kind, sources=sources):
        return Finding("error", "privileges", f"role {role} lacks what it needs to {purpose}", "\n".join(grants))
    if kind != "owner" and not await privileges.is_migrated(connection, config, kind):
        text = f"role {role} lacks nothing that is there; whether it can {purpose} shows when all is migrated"
        return Finding("info", "privileges", text)
    return Finding("ok", "privileges", f"role {role} can {purpose}")
