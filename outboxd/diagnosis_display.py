"""How waiting messages are shown to people: ages instead of times, and reasons below the table."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

from outboxd.display import duration, one_line, seconds_between, show_lines, show_table
from outboxd.query import as_written
from outboxd.switching import Row, origin, subject

if TYPE_CHECKING:
    from collections.abc import Mapping

PAYLOAD_CHARACTERS_MAX = 40
NULL_BYTES_MAX = 16
"""JSON's null is stored in fewer, what is too large in many more."""
REASON_CHARACTERS_MAX = 200
SWITCHED_OFF_SHOWN_MAX = 20


def show_shards(rows: Sequence[Mapping[str, Any]], off: Sequence[Row], now: str) -> None:
    """Print the deepest shards; below them why they do not move, and whatever is switched off, listed or not."""
    if not rows:
        click.echo("no message waits there")
    else:
        titles = [*_place_titles(rows), "depth", "due", "oldest", "newest", "state"]
        cells = [
            [
                *_place(row, titles),
                _count(row["depth"], row),
                _count(row["due"], row),
                age(row["oldest"], now),
                age(row["newest"], now),
                _state(row, now),
            ]
            for row in rows
        ]
        show_table(titles, cells, right=["depth", "due"])
        if any(row["is_estimate"] for row in rows):
            click.echo("\n~ is an estimate, from a part of the table")
        _echo_reasons([(name_of(row), row["because"]) for row in rows])
    _echo_off(off)


def show_stuck(rows: Sequence[Mapping[str, Any]], off: Sequence[Row], now: str) -> None:
    """Print the shards in backoff, and the last error of each; below them whatever is switched off."""
    if rows:
        _echo_stuck(rows, now)
    else:
        click.echo("no shard is in backoff")
    _echo_off(off)


def _echo_stuck(rows: Sequence[Mapping[str, Any]], now: str) -> None:
    titles = [*_place_titles(rows), "category", "depth", "next try", "oldest", "newest", "tries"]
    cells = [
        [
            *_place(row, titles),
            row["category_name"],
            "?" if row["depth"] is None else f"{row['depth']:,}{'+' if row['is_at_least'] else ''}",
            _next_try(row, now),
            age(row["oldest"], now),
            age(row["newest"], now),
            f"{row['attempts']:,}",
        ]
        for row in rows
    ]
    show_table(titles, cells, right=["depth", "tries"])
    if any(row["is_at_least"] for row in rows):
        click.echo("\n+ means at least")
    if any(row["depth"] is None for row in rows):
        click.echo("\n? means that the message which failed is gone")
    if any(row["is_partial"] for row in rows):
        click.echo("\nmore objects fail than were looked at: others may have failed longer")
    reasons = [
        (
            f"{name_of(row)}, object {row['object_identifier']}",
            "; ".join(filter(None, (row["paused"], row["last_error"]))),
        )
        for row in rows
    ]
    _echo_reasons(reasons)


def _next_try(row: Mapping[str, Any], now: str) -> str:
    """Tell when it is, or how long there is none."""
    if row["paused"] is None:
        return when(row["next_attempt"], now)
    return "paused" if row["paused_until"] is None else f"paused for {_span(seconds_between(now, row['paused_until']))}"


def show_messages(rows: Sequence[Mapping[str, Any]], now: str, where: str, *, of_object: bool) -> None:
    """Print messages, of one shard or about one object; their payloads cut. *where* was looked, if there is none."""
    if not rows:
        show_lines([f"no message waits {where}"])
        return
    own = _place_titles(rows) if of_object else []
    titles = [*own, "id", *([] if of_object else ["category", "object"]), "written", "due", "tries", "payload"]
    cells = [
        [
            *(_place(row, own) if own else []),
            str(row["id"]),
            *([] if of_object else [row["category_name"], str(row["object_identifier"])]),
            age(row["date_added"], now),
            when(row["scheduled_for"], now),
            str(row["attempts"] or "-"),
            _payload(row),
        ]
        for row in rows
    ]
    show_table(titles, cells, right=["id", "tries"], cuts=["payload"])
    failed = {(name_of(row), str(row["object_identifier"])): row["last_error"] for row in rows}
    _echo_reasons([(f"{place}, object {obj}", error) for (place, obj), error in failed.items()])


def show_depth(row: Mapping[str, Any], now: str) -> None:
    """Print how many messages of a category wait."""
    titles = ["category", "outbox", "depth", "due", "oldest", "newest"]
    counts = (_count(row["depth"], row), _count(row["due"], row))
    cells = [row["category_name"], row["outbox"], *counts, age(row["oldest"], now), age(row["newest"], now)]
    show_table(titles, [cells], right=["depth", "due"])
    if row["is_estimate"]:
        click.echo("\n~ is an estimate, from a part of the table; oldest and newest are of that part")


def name_of(row: Mapping[str, Any]) -> str:
    """Name a shard as the commands take it, with its region where it has one."""
    region = f" in {row['region_name']}" if row.get("region_name") else ""
    return f"{row['scope_name']} {row['shard_identifier']}{region}"


def age(time: str | None, now: str) -> str:
    """Tell how long ago it was."""
    return "-" if time is None else _span(-seconds_between(now, time))


def when(time: str | None, now: str) -> str:
    """Tell in how long it is, or that it is over."""
    if time is None:
        return "?"
    left = seconds_between(now, time)
    if left <= 0:
        return "now"
    return "never" if math.isinf(left) else f"in {duration(left)}"


def _span(seconds: float) -> str:
    return "for ever" if math.isinf(seconds) and seconds > 0 else duration(max(0.0, seconds))


def _place_titles(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Tell which columns name a shard: its outbox only where there are several."""
    return ["shard", *(["outbox"] if len({row["outbox"] for row in rows}) > 1 else [])]


def _place(row: Mapping[str, Any], titles: Sequence[str]) -> list[str]:
    return [name_of(row), *([row["outbox"]] if "outbox" in titles else [])]


def _count(number: int, row: Mapping[str, Any]) -> str:
    return f"~{number:,}" if row["is_estimate"] else f"{number:,}"


def _state(row: Mapping[str, Any], now: str) -> str:
    if row["until"] is None:
        return str(row["state"])
    if row["state"] == "not due":
        return f"not due, {when(row['until'], now)}"
    return f"{row['state']} for {_span(seconds_between(now, row['until']))}"


def payload_of(row: Mapping[str, Any]) -> str | None:
    """Return the payload of a message as the server has it; None where there is none, or it is too large to be read."""
    if row["payload"] is not None:
        return as_written(row["payload"])
    return "null" if row["payload_size"] is not None and row["payload_size"] <= NULL_BYTES_MAX else None


def _payload(row: Mapping[str, Any]) -> str:
    payload = payload_of(row)
    if payload is not None:
        return one_line(payload, PAYLOAD_CHARACTERS_MAX)
    return "-" if row["payload_size"] is None else f"({row['payload_size']:,} bytes)"


def _echo_off(off: Sequence[Row]) -> None:
    """Print what is switched off, whether anything else is listed or not."""
    if off:
        click.echo("\nswitched off now:")
        shown = [f"{subject(row)}, {origin(row)}" for row in off[:SWITCHED_OFF_SHOWN_MAX]]
        if len(off) > len(shown):
            shown.append(f"… and {len(off) - len(shown):,} more: outboxd pause --list")
        show_lines(f"  {one_line(text)}" for text in shown)


def _echo_reasons(reasons: Sequence[tuple[str, str | None]]) -> None:
    lines = [f"{place}: {one_line(why, REASON_CHARACTERS_MAX)}" for place, why in reasons if why]
    if lines:
        click.echo()
        show_lines(map(one_line, lines))
