"""
What `outboxd doctor` makes of what it sees: from rows of `doctor.sql` to findings. Pure.

An error is what keeps messages from being delivered, or soon will; a warning is what somebody should know of.
"""

from __future__ import annotations

import datetime as dt
from typing import TYPE_CHECKING, Any

from outboxd.command_line import line
from outboxd.display import counted, duration, moment
from outboxd.findings import Finding
from outboxd.shard_facts import QUIET_REMEDY, QUIET_S_MAX
from outboxd.sql import literal
from outboxd.switching import label, subject

if TYPE_CHECKING:
    from outboxd.config import Config, OutboxConfig

Row = dict[str, Any]

UNCLAIMED_S_MAX = 15.0
WHOLESALE_SHARDS = 10
ALL_IN_BACKOFF_MIN = 5
TRANSACTION_S_MAX = 300.0
TRANSACTION_S_LONG = 3_600.0
TRANSACTIONS_HELD_MAX = 100_000
DEAD_ROWS_MAX = 100_000
SPARSE_BYTES_MIN = 100 * 2**20
SPARSE_BYTES_A_ROW = 16_384
ROOM_WARNING = 0.5
ROOM_ERROR = 0.9
NAMED_MAX = 5
FORGOTTEN_AFTER = dt.timedelta(days=1)


def is_alive(daemon: Row) -> bool:
    """Whether somebody holds the lock of its registration."""
    return daemon["backend_pid"] is not None


def drains(daemon: Row, outbox: OutboxConfig) -> bool:
    """Whether a daemon of this kind drains the outbox."""
    return daemon["silo_mode"] in ("monolith", outbox.silo) and outbox.name in daemon["outboxes"]


def daemons(rows: list[Row], config: Config) -> list[Finding]:
    """Tell whether there is a daemon for each outbox, and whether it answers."""
    living = [row for row in rows if is_alive(row)]
    found = []
    for outbox in config.outboxes:
        here = [row for row in living if drains(row, outbox)]
        if here:
            named = ", ".join(_daemon(row) for row in here[:NAMED_MAX])
            more = f" and {len(here) - NAMED_MAX} more" if len(here) > NAMED_MAX else ""
            found.append(Finding("ok", f"outbox {outbox.name}", f"drained by {named}{more}"))
        else:
            text = f"no daemon is running that drains it (silo {outbox.silo})"
            remedy = "Start `outboxd`. Where `outboxd --once` does the work, look whether its timer runs."
            found.append(Finding("error", f"outbox {outbox.name}", text, remedy))
    return found + [_quiet(row) for row in living if (row["quiet_s"] or 0) > QUIET_S_MAX] + _dead(rows)


def _daemon(row: Row) -> str:
    return f"pid {row['pid']} on {row['host']}"


def _quiet(row: Row) -> Finding:
    text = f"{_daemon(row)} has not touched its claim session for {duration(row['quiet_s'])}: it hangs, or is stopped"
    return Finding("error", "daemons", text, QUIET_REMEDY)


def unprivileged(daemon: Row, grants: list[str]) -> list[Finding]:
    """Tell what the role of a daemon lacks, as GRANTs."""
    if not grants:
        return []
    text = f"role {daemon['role']}, as which {_daemon(daemon)} works, lacks privileges that a daemon needs"
    return [Finding("error", "daemons", text, "\n".join(grants))]


def _dead(rows: list[Row]) -> list[Finding]:
    dead = [row for row in rows if not is_alive(row)]
    found = [_death(row) for row in dead[:NAMED_MAX]]
    more = len(dead) - NAMED_MAX
    return found if more <= 0 else [*found, Finding("info", "daemons", f"at least {more} more died in the last day")]


def _death(row: Row) -> Finding:
    when = f"died at {moment(row['died_at'])}" if row["died_at"] else "has died, and no other daemon has noticed yet"
    if row["is_long_dead"]:
        return Finding("info", "daemons", f"{_daemon(row)} {when}")
    text = f"{_daemon(row)} {when}: for five minutes, deliveries are counted ahead (prepared mode)"
    remedy = "Its log says why: its last line, an OOM kill, the watchdog. Its shards are free."
    return Finding("warning", "daemons", text, remedy)


def claims(rows: list[Row], lags: dict[str, Row], config: Config) -> list[Finding]:
    """
    Tell whether due shards are taken; nothing where there is no daemon, which is said already.

    A shard's lock does not tell its outbox: of daemons that drain several only none at all is certain.
    """
    found = []
    for outbox in config.outboxes:
        here = [row for row in rows if is_alive(row) and drains(row, outbox)]
        lag = lags.get(outbox.name)
        if not here or lag is None:
            continue
        claimed = sum(row["claimed"] for row in here)
        are_its_own = all(row["outboxes"] == [outbox.name] for row in here)
        held = f"its daemons hold {counted(claimed, 'shard')} at this moment"
        text = held if are_its_own or not claimed else f"{held}, of all their outboxes"
        subject = f"outbox {outbox.name}"
        patience_s = max(UNCLAIMED_S_MAX, 10 * config.drain.poll_interval_s)
        if not lag["due"] or lag["lag_s"] <= patience_s or lag["is_off"] or (claimed and are_its_own):
            found.append(Finding("ok", subject, text))
            continue
        remedy = "Look at their log for outbox.not_ready, outbox.unavailable, settle.deferred and claims.lost."
        late = f"messages have been due for {duration(lag['lag_s'])}"
        if claimed:
            found.append(Finding("info", subject, f"{late}; {text}: perhaps none is of this one", remedy))
        else:
            found.append(Finding("error", subject, f"{late}, and its daemons have claimed no shard", remedy))
    return found


def switches(rows: list[Row], options: list[Row]) -> list[Finding]:
    """
    List what is switched off: what has neither reason nor end, and is older than a day, was perhaps forgotten.

    Args:
        rows: Of `switching.switched_off_query`.
        options: Of `setting.options_query`: an option is one finding, however long its list.
    """
    listed: dict[str, list[str]] = {}
    for row in rows:
        if row["in_force"] and row["option"] is not None:
            listed.setdefault(row["option"], []).append(subject(row))
    found = [_switch(row, subject(row)) for row in rows if row["in_force"] and row["id"] is not None]
    for option in options:
        if option["key"] in listed:
            what = listed[option["key"]]
            more = f" and {len(what) - NAMED_MAX:,} more" if len(what) > NAMED_MAX else ""
            by = {"author": option["updated_by"], "since": option["updated_at"], "option": option["key"], "id": None}
            found.append(_switch({**option, **by}, ", ".join(what[:NAMED_MAX]) + more))
        if option["problem"] is not None and option["state"] == "in force":
            text = f"{option['problem']}: it, or a part of it, has no effect"
            found.append(Finding("warning", f"option {option['key']}", text, line("options get", option["key"])))
    return found or [Finding("ok", "kill switches", "nothing is switched off")]


def _switch(row: Row, what: str) -> Finding:
    until = f"until {moment(row['expires_at'])}" if row["expires_at"] else "without end"
    author = row["author"] or "nobody named"
    text = f"{what}, by {author} since {moment(row['since'])}, {until}: {row['reason'] or 'no reason was given'}"
    forgotten = not row["reason"] or (_is_old(row["since"]) and not row["expires_at"])
    command = line("resume", row["id"]) if row["option"] is None else line("options unset", row["option"])
    ask = f"Ask {row['author']} whether it must stay. " if row["author"] else ""
    remedy = f"{ask}To end it: {command}" if forgotten else ""
    return Finding("warning" if forgotten else "info", label(row), text, remedy)


def _is_old(since: str) -> bool:
    """Whether what counts now was switched off long ago; SQL may have written a time that Python does not know."""
    try:
        return dt.datetime.fromisoformat(since) < dt.datetime.now(dt.UTC) - FORGOTTEN_AFTER
    except ValueError:  # -infinity, or before Christ
        return True


def locks(rows: list[Row], outbox: OutboxConfig) -> list[Finding]:
    """Tell who locks the whole table."""
    return [
        Finding(
            "error" if row["granted"] else "warning",
            f"outbox {outbox.name}",
            f"{_session(row)} {'holds' if row['granted'] else 'waits for'} {row['mode']} on the table"
            f"{_for(row['age_s']).rstrip(',')}: nobody gets past it",
            f"Let it end; or end it: SELECT pg_terminate_backend({row['pid']});",
        )
        for row in rows
    ]


def backoff(row: Row, outbox: OutboxConfig) -> list[Finding]:
    """Tell how much is in backoff: everything is an error."""
    subject = f"outbox {outbox.name}"
    shards, failing = row["shards"], row["failing"]
    waiting = _at_least(row["is_at_least"]) + counted(shards, "waiting shard")
    if not failing:
        return [Finding("ok", subject, f"none of {waiting} is in backoff")]
    text = f"{failing} of {waiting} in backoff"
    if failing == shards >= ALL_IN_BACKOFF_MIN:
        remedy = "Mend what they fail with, then: outboxd retry --all-stuck"
        return [Finding("error", subject, f"everything that waits is in backoff: {text}", remedy)]
    return [Finding("warning", subject, text, line("shards --stuck", outbox=outbox.name))]


def failures(rows: list[Row], outbox: OutboxConfig) -> list[Finding]:
    """Tell what receivers fail with; alike errors are one finding, and in many shards an error."""
    subject = f"outbox {outbox.name}"
    if not rows:
        return [Finding("ok", subject, "no receiver has failed and not succeeded since")]
    return [_failure(row, subject, line("shards --stuck", outbox=outbox.name)) for row in rows]


def _failure(row: Row, subject: str, remedy: str) -> Finding:
    shards, objects = (
        _at_least(row[f"{what}s_at_least"]) + counted(row[f"{what}s"], what) for what in ("shard", "object")
    )
    where = f"{shards} ({objects}"
    tries = f"up to {counted(row['attempts'], 'attempt')}, last {moment(row['last_failed_at'])})"
    text = f"category {row['category']} fails in {where}, {tries}: {' '.join(row['error'].split())}"
    wholesale = row["shards"] >= WHOLESALE_SHARDS
    return Finding("error" if wholesale else "warning", subject, text, remedy if wholesale else "")


def table(row: Row, outbox: OutboxConfig) -> list[Finding]:
    """Tell whether the table is vacuumed, and whether it is mostly empty pages."""
    subject, name = f"outbox {outbox.name}", row["name"]
    live, dead = row["live_rows"] or 0, row["dead_rows"] or 0
    size = f"{_bytes(row['table_bytes'])}, indexes {_bytes(row['index_bytes'])}"
    vacuumed = f"vacuumed {moment(row['vacuumed_at'])}" if row["vacuumed_at"] else "not vacuumed since statistics began"
    text = f"about {_number(live)} live and {_number(dead)} dead rows, {size}, {vacuumed}"
    found = []
    if row["is_never_vacuumed"]:
        remedy = f"ALTER TABLE {name} RESET (autovacuum_enabled);"
        found.append(Finding("warning", subject, "autovacuum is switched off for this table", remedy))
    if dead > max(DEAD_ROWS_MAX, 2 * live) and not row["is_being_vacuumed"]:
        remedy = f"VACUUM {name}; if the number stays, see below what holds vacuum back."
        found.append(Finding("warning", subject, f"dead rows pile up: {text}", remedy))
    if row["table_bytes"] > SPARSE_BYTES_MIN and row["table_bytes"] / max(1, live) > SPARSE_BYTES_A_ROW:
        remedy = (
            f"In a quiet hour: VACUUM FULL {name}; (nobody can write meanwhile) and REINDEX TABLE CONCURRENTLY {name};"
        )
        found.append(Finding("warning", subject, f"the table is mostly empty pages: {text}", remedy))
    if row["xid_age"] > 1.5 * row["xid_age_max"]:
        age = f"its oldest row is {_number(row['xid_age'])} transactions old: wraparound comes near"
        found.append(Finding("error", subject, age, f"VACUUM (FREEZE) {name};"))
    return found or [Finding("ok", subject, text)]


def sequence(row: Row, outbox: OutboxConfig) -> list[Finding]:
    """Tell how much room there is for more ids."""
    subject, last = f"outbox {outbox.name}", row["last_id"]
    if last is None:
        return [Finding("info", subject, "no id was given yet, or this role may not see the sequence")]
    share = last / row["id_max"]
    text = f"id {_number(last)} of {_number(row['id_max'])}: {share:.0%} are used"
    if share < ROOM_WARNING:
        return [Finding("ok", subject, text)]
    remedy = f"ALTER TABLE {row['name']} ALTER COLUMN id TYPE bigint; (rewrites the table)"
    return [Finding("error" if share >= ROOM_ERROR else "warning", subject, text, remedy)]


def horizon(rows: list[Row]) -> list[Finding]:
    """Tell what holds vacuum back: long transactions are a warning, very long ones an error."""
    found = [_holder(row) for row in rows if row["kind"] is not None and not _is_ours_at_work(row)]
    if not rows or not rows[0]["sees_activity"]:
        text = "this role does not see the transactions of other roles: the oldest may be missing here"
        found.append(Finding("info", "vacuum", text, "GRANT pg_read_all_stats TO the role that looks."))
    return found or [Finding("ok", "vacuum", "no transaction, slot or standby holds it back")]


def _is_ours_at_work(row: Row) -> bool:
    """Whether it is a statement of a daemon: there is always one."""
    return (row["name"] or "").startswith("outboxd: ") and (row["age_s"] or 0) < TRANSACTION_S_MAX


def _holder(row: Row) -> Finding:
    age_s = row["age_s"]
    held = f"holds back vacuum by {counted(row['xid_age'] or 0, 'transaction')}"
    match row["kind"]:
        case "prepared":
            text = f"prepared transaction {row['name']} of {row['role']}{_for(age_s)} {held}"
            remedy = f"COMMIT PREPARED {literal(row['name'])}; or ROLLBACK PREPARED {literal(row['name'])};"
        case "slot":
            text = f"replication slot {row['name']} ({row['state']}) {held}"
            remedy = f"If nobody needs it: SELECT pg_drop_replication_slot({literal(row['name'])});"
        case "standby":
            text = f"standby {row['name']}, backend {row['pid']}, {held} (hot_standby_feedback)"
            remedy = "Look for a long query on that standby."
        case _:
            text = f"{_session(row)}{_for(age_s)} {held}"
            remedy = f"Let it end; or end it: SELECT pg_terminate_backend({row['pid']});"
    # With hot_standby_feedback a standby, or the slot that it uses, always holds back a little, and has no age.
    is_young = age_s < TRANSACTION_S_MAX if age_s is not None else (row["xid_age"] or 0) < TRANSACTIONS_HELD_MAX
    if is_young and row["state"] != "inactive":
        return Finding("info", "vacuum", text)
    return Finding("error" if (age_s or 0) >= TRANSACTION_S_LONG else "warning", "vacuum", text, remedy)


def lag(row: Row, outbox: OutboxConfig, slo_s: float) -> list[Finding]:
    """Tell whether the oldest due message is older than it may be."""
    subject, limit = f"outbox {outbox.name}", f"doctor.lag_slo_s is {slo_s:g}"
    if row["is_off"]:
        return [Finding("info", subject, "it is switched off: how late it is does not count")]
    if not row["due"]:
        return [Finding("ok", subject, "nothing is due that could be delivered")]
    text = f"the oldest message that could be delivered has been due for {duration(row['lag_s'])}; {limit}"
    if row["lag_s"] <= slo_s:
        return [Finding("ok", subject, text)]
    remedy = (
        f"{line('shards', outbox=outbox.name)}\nRaise drain.concurrency, quicken receivers, or start another daemon."
    )
    return [Finding("error", subject, text, remedy)]


def _session(row: Row) -> str:
    name = row.get("application") or row.get("name") or "without a name"
    state = f", {row['state']}" if row["state"] else ""
    return f"backend {row['pid']} ({name}), role {row['role']}{state}"


def _for(age_s: float | None) -> str:
    return "" if age_s is None else f", for {duration(age_s)},"


def _at_least(is_so: bool) -> str:
    return "at least " if is_so else ""


def _number(number: int) -> str:
    return f"{number:,}"


def _bytes(size: float) -> str:
    for unit in ("bytes", "kB", "MB"):
        if size < 1_024:
            return f"{size:.0f} {unit}"
        size /= 1_024
    return f"{size:.1f} GB"
