"""
What people ask of backfills: where each one is (`status`), and what it would write (`plan`).

Nothing here writes. Rows are those of the source table; a number that is None is not known.
"""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import msgspec

from outboxd import errors, session, sql
from outboxd.query import Query, numbers_of
from outboxd.source import FRESH, names_of_row
from outboxd.sql import literal
from outboxd.switching import rows_of, switches
from outboxd.walker import TABLE_CLASS
from outboxd.watermark import State, next_step

if TYPE_CHECKING:
    import asyncpg

    from outboxd.backfill import Backfill
    from outboxd.config import Config, ModelConfig
    from outboxd.source import Source, Walk
    from outboxd.walker import Walker

_STATEMENTS = sql.load("backfill_report.sql")

ROWS_COUNTED_MAX = 10_000
FIRST_MESSAGES = 5
PLAN_S_MAX = 86_400.0
_READ_ONLY = "25006"


class Status(msgspec.Struct, frozen=True, kw_only=True):
    """
    Where one model's backfill is; its fields are the keys of the JSON document.

    Attributes:
        condition: See `walker.Condition`; instead of `walking` it is `running` while somebody walks the table, and
            `ready` while nobody does.
        explanation: Why it does not go on.
        version: As in the watermark: of the walk under way, or of the next one.
        is_estimate: Whether one of the two numbers of rows was not counted.
    """

    table: str
    outbox: str
    category: str
    condition: str
    explanation: str
    version: int
    target: int
    replication_version: int
    low_bound: str
    highest_id: str | None
    rows_done: int | None
    rows_left: int | None
    is_estimate: bool
    messages_last_minute: int
    seconds_left: float | None


class Plan(msgspec.Struct, frozen=True, kw_only=True):
    """
    What a walk of one model would do; its fields are the keys of the JSON document.

    Attributes:
        condition: As in `Status`, before anybody was asked whether it is walked: `ready` where it could be.
        version: With which it would be walked; None: there is nothing to walk.
        rows: Rows that would be looked at.
        rows_refused: Those among them that have no shard or no object: they would stop the walk.
        minutes: At the configured rate; None when that is 0.
        first_messages: Each a JSON object.
    """

    table: str
    outbox: str
    category: str
    condition: str
    explanation: str
    version: int | None = None
    low_bound: str = FRESH
    rows: int = 0
    rows_refused: int = 0
    messages: int = 0
    minutes: float | None = 0.0
    first_messages: list[msgspec.Raw] = []


class Place(msgspec.Struct, frozen=True):
    """Rows before and after the place of a walk, and the highest key."""

    highest: str | None = None
    done: int | None = None
    left: int | None = None
    is_estimate: bool = False


async def statuses(backfill: Backfill) -> list[Status]:
    """
    Tell where every backfill is.

    Raises:
        StoreUnavailable, SchemaError, StatementFailed: Of one model alone they are its condition.
    """
    await backfill.look()
    lags = await _lags(backfill)
    tables = [walker.table for walker in backfill.walkers]
    renderer = sql.Renderer({"schema": sql.quote(backfill.config.schema)}, {})
    spent_lately, walked_now = (renderer.render(_STATEMENTS[name]) for name in ("spent_lately", "walked_now"))
    spending = await backfill.session.fetch("reading what was spent", spent_lately, tables)
    spent: dict[str, int] = {row[0]: row[1] for row in spending}
    arguments = [TABLE_CLASS, tables, backfill.config.schema]
    walked = {row[0] for row in await backfill.session.fetch("looking for walks", walked_now, *arguments)}
    return [
        await _status(backfill, walker, lags=lags, walked=walker.table in walked, spent=spent.get(walker.table, 0))
        for walker in backfill.walkers
    ]


async def plan(backfill: Backfill, walker: Walker, connection: asyncpg.Connection) -> Plan:
    """
    Tell what a walk would do, also one that is held back.

    Args:
        backfill: What its `look` has found is taken as it is.
        walker: The model.
        connection: For one transaction that may not write: payloads may call any function.

    Raises:
        OutboxdError: As the walk itself would, at least with what shows before anything is written.
    """
    found = _identity(walker) | {
        "condition": "ready" if walker.progress.condition == "walking" else walker.progress.condition,
        "explanation": explain(backfill, walker),
    }
    step = step_of(walker)
    if walker.progress.condition in ("broken", "unreadable") or step is None:
        return Plan(**found)
    walk = await walker.walk()
    renderer = _renderer(walk)
    first_key = walk.source.first_key(step.low_bound)
    regions = walker.regions()
    doing = f"planning {walker.table}"
    try:
        async with connection.transaction(isolation="repeatable_read", readonly=True):
            await connection.prepare(walk.batch)  # finds wrong columns and types
            statement = renderer.render(_STATEMENTS["count_left"])
            counts = (await connection.fetch(statement, first_key, regions, timeout=PLAN_S_MAX))[0]
            statement = renderer.render(_STATEMENTS["first_messages"])
            first = await connection.fetch(statement, first_key, regions, FIRST_MESSAGES, timeout=PLAN_S_MAX)
    except Exception as exc:
        raise _explained(exc, doing) from exc
    rate = backfill.config.backfill.backfills_per_minute
    return Plan(
        **found,
        version=step.version,
        low_bound=step.low_bound,
        rows=counts["rows"],
        rows_refused=counts["refused"],
        messages=counts["messages"],
        minutes=round(counts["messages"] / rate, 2) if rate else None,
        first_messages=[msgspec.Raw(row[0].encode()) for row in first],
    )


def step_of(walker: Walker) -> State | None:
    """Tell where the walk goes on, or would if no option held it back; None when there is nothing to walk."""
    progress = walker.progress
    state = State(progress.low_bound, progress.version)
    return next_step(state, progress.target) or next_step(state, walker.model.replication_version)


def explain(backfill: Backfill, walker: Walker) -> str:
    """Say why a walk does not go on; empty when it does, or has nothing more to do."""
    progress, table = walker.progress, walker.table
    match progress.condition:
        case "broken" | "unreadable":
            return progress.error
        case "never":
            return "replication_version is 0"
        case "waiting" if walker.regions() == []:
            return f"option outbox_replication.{table}.backfill.target_regions leaves no region"
        case "waiting":
            key = f"outbox_replication.{table}.replication_version"
            return f"option {key} is {progress.target}; version {walker.model.replication_version} waits for it"
        case "paused":
            return _explain_pause(backfill, walker.model)
        case "lag":
            return f"due messages are older than {backfill.config.backfill.pause_above_lag_s:g} s: live traffic first"
        case "elsewhere":
            return "another process walks it"
        case _:
            return ""


def _explain_pause(backfill: Backfill, model: ModelConfig) -> str:
    if not backfill.config.backfill.backfills_per_minute:
        return "backfills_per_minute is 0"
    pauses = backfill.switchboard.gates.pauses_of(model.table)
    if pauses:
        return "; ".join(pause.about() for pause in pauses)
    if model.outbox in backfill.switchboard.now.outboxes:
        return f"outbox {model.outbox} is switched off"
    return f"category {model.category} is switched off"


def watermark_query(config: Config) -> str:
    """Write a query for psql that says where the backfills of this configuration are."""
    models = [model for model in config.model if model.outbox in {outbox.name for outbox in config.outboxes}]
    if not models:
        return "-- No [[model]] is configured: there is nothing to backfill.\n"
    rows = [
        (
            literal(model.table),
            str(model.replication_version),
            literal(model.outbox),
            f"({config.categories[model.category].value})",
        )
        for model in models
    ]
    header, statement = sql.split_header(_STATEMENTS["watermarks"])
    about = [line.removeprefix("-- ") for line in header.splitlines()]
    if config.backfill.state == "redis":
        about.append("They are kept in Redis, as [low_bound, version]; low_bound and version below mean nothing.")
        about += [f"  GET {literal(f'outbox_backfill.{model.table}')}" for model in models]
    return Query(
        about="\n".join(about),
        statement=statement,
        values={"rows_max": len(models)},
        names={"schema": sql.quote(config.schema), "models": rows_of(rows), "switches": switches(config)},
        shard_columns={},
        numbers=numbers_of(config),
    ).for_psql()


async def _lags(backfill: Backfill) -> bool:
    """Whether live traffic holds the walks back; not asked while there are none."""
    if all(walker.progress.condition != "walking" for walker in backfill.walkers):
        return False
    return (await backfill.load()).lag_s > backfill.config.backfill.pause_above_lag_s


async def _status(backfill: Backfill, walker: Walker, *, lags: bool, walked: bool, spent: int) -> Status:
    progress = walker.progress
    if lags and progress.condition == "walking":
        progress.condition = "lag"
    place = await _known_place(backfill, walker)
    condition: str = progress.condition
    if condition == "walking":
        condition = "running" if walked else "ready"
    return Status(
        **_identity(walker),
        condition=condition,
        explanation=explain(backfill, walker),
        version=progress.version,
        target=progress.target,
        replication_version=walker.model.replication_version,
        low_bound=progress.low_bound,
        highest_id=place.highest,
        rows_done=place.done,
        rows_left=place.left,
        is_estimate=place.is_estimate,
        messages_last_minute=spent,
        seconds_left=_seconds_left(backfill, walker, condition, place, spent),
    )


def _identity(walker: Walker) -> dict[str, Any]:
    return {"table": walker.table, "outbox": walker.model.outbox, "category": walker.model.category}


async def _known_place(backfill: Backfill, walker: Walker) -> Place:
    """Look where the walk is; that a table which needs no walk any more cannot be looked at is no fault of it."""
    if walker.progress.condition in ("never", "broken", "unreadable"):
        return Place()
    if walker.progress.condition == "finished":
        try:
            return await _place(backfill, walker)
        except (errors.SchemaError, errors.StatementFailed):
            return Place(left=0)
    return await walker.guarded(_place(backfill, walker)) or Place()


async def _place(backfill: Backfill, walker: Walker) -> Place:
    walk = await walker.walk()
    step = step_of(walker)
    first_key = walk.source.first_key(step.low_bound) if step is not None else None
    statement = _renderer(walk).render(_STATEMENTS["place"])
    doing = f"looking at {walker.table}"
    if walk.source.is_past_the_end(first_key):
        first_key, step = None, None
    row = (await backfill.session.fetch(doing, statement, first_key, walk.source.oid, ROWS_COUNTED_MAX + 1))[0]
    lowest, highest, estimated, below, above = row
    share = 0.0 if first_key is None or highest is None else _share(walk.source, first_key, lowest, highest)
    left = above if above <= ROWS_COUNTED_MAX else _at_least(above, estimated, 1 - share)
    done = below if below <= ROWS_COUNTED_MAX else _at_least(below, estimated, share)
    if step is None:  # finished: all there is lies before its place
        done, left = left, 0
    return Place(highest, done, left, is_estimate=max(below, above) > ROWS_COUNTED_MAX)


def _at_least(counted: int, estimated: int | None, share: float) -> int | None:
    return None if estimated is None else max(counted, round(estimated * share))


def _share(source: Source, key: Any, lowest: str, highest: str) -> float:
    """Tell how far *key* lies between the ends, 0 to 1: the rows are taken to lie evenly."""
    if source.key_type == "uuid":
        place, low, high = (_leading(value) for value in (key, uuid.UUID(lowest), uuid.UUID(highest)))
    else:
        place, low, high = key, int(lowest), int(highest) + 1
    return min(1.0, max(0.0, (place - low) / max(1, high - low)))


def _leading(key: uuid.UUID) -> int:
    return int.from_bytes(key.bytes[:8])


def _seconds_left(backfill: Backfill, walker: Walker, condition: str, place: Place, spent: int) -> float | None:
    """Tell how long a running walk will take: at the pace of the last minute, or at its rate when it has just begun."""
    if condition == "finished":
        return 0.0
    rate = spent or backfill.config.backfill.backfills_per_minute
    if condition != "running" or place.left is None or not rate:
        return None
    return round(place.left * walker.fan_out() / rate * 60, 1)


def _explained(exc: Exception, doing: str) -> errors.OutboxdError:
    if getattr(exc, "sqlstate", "") == _READ_ONLY:  # here it is our doing, and no sign of a standby
        return errors.StatementFailed(f"{doing}: an expression of this model writes, which a plan may not: {exc}")
    error = session.translate(exc, doing)
    if isinstance(error, errors.SchemaError):
        error.hint = "Look at the columns and expressions of this [[model]], and at the rights of this role."
    return error


def _renderer(walk: Walk) -> sql.Renderer:
    """Give the names that a model's statements are written with: those of the walk, and its targets."""
    names = names_of_row(walk.model, walk.source)
    fragment = _STATEMENTS["targets_by_row" if walk.by_row else "targets"]
    return sql.Renderer({**names, "targets": sql.Renderer(names, {}).render(fragment)}, {})
