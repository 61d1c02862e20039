"""What a command line means: which outbox, which identifier, which JSON. Shared by the sub-commands."""

from __future__ import annotations

import datetime as dt
import json
import re
import sys
import uuid
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn

from outboxd import contract, errors, suggest

if TYPE_CHECKING:
    from outboxd.config import Config, OutboxConfig
    from outboxd.model import Identifier

_INTEGER = re.compile(r"[+-]?[0-9]{1,19}")
_DURATION = re.compile(r"(?:(\d{1,9})d)?(?:(\d{1,9})h)?(?:(\d{1,9})m)?(?:(\d{1,9})s)?", re.ASCII)
DURATION_S_MAX = 10 * 365 * 86_400
_INTEGER_BITS = {"smallint": 16, "integer": 32, "bigint": 64}


def choose_outbox(config: Config, name: str | None, region: str | None, *, needs_region: bool = True) -> OutboxConfig:
    """
    Return the outbox that a command means.

    Without a name: the one outbox of the silo mode that has `region_name` exactly when a region is given.

    Args:
        config: Its `outboxes` are the candidates.
        name: As given by --outbox.
        region: As given by --region.
        needs_region: Whether a shard is meant; else a named outbox with regions may be meant as a whole.

    Raises:
        UsageError: No such outbox, or not exactly one: lists them. Or it takes no region, or needs one.
    """
    outboxes = config.require_outboxes()
    if region == "":
        raise errors.UsageError("--region must not be empty")
    if name is None:
        fitting = [o for o in outboxes if contract.has_region(o) == (region is not None)]
        return fitting[0] if len(fitting) == 1 else _not_one(outboxes, fitting, region)
    for outbox in outboxes:
        if outbox.name == name:
            _refuse_region(outbox, region, needs_region=needs_region)
            return outbox
    raise errors.UsageError(f"there is no outbox {name}{suggest.nearest(name, [o.name for o in outboxes])}")


def choose_outboxes(config: Config, name: str | None, region: str | None) -> list[OutboxConfig]:
    """
    Return the outboxes that a command looks at: every one of the silo mode, with a region those that have regions.

    Raises:
        UsageError: No such outbox, or it has no regions and one is given.
    """
    if name is not None or region == "":
        return [choose_outbox(config, name, region, needs_region=False)]
    outboxes = config.require_outboxes()
    fitting = [outbox for outbox in outboxes if region is None or contract.has_region(outbox)]
    return fitting or [_not_one(outboxes, fitting, region)]


def _not_one(outboxes: list[OutboxConfig], fitting: list[OutboxConfig], region: str | None) -> NoReturn:
    listed = ", ".join(f"{o.name} ({'with' if contract.has_region(o) else 'no'} region)" for o in outboxes)
    given = "--region is given" if region is not None else "no --region is given"
    if fitting:
        raise errors.UsageError(f"{given}, and {len(fitting)} outboxes fit: name one with --outbox: {listed}")
    raise errors.UsageError(f"{given}, but no outbox {'takes' if region is not None else 'goes without'} one: {listed}")


def _refuse_region(outbox: OutboxConfig, region: str | None, *, needs_region: bool) -> None:
    if needs_region and contract.has_region(outbox) and region is None:
        raise errors.UsageError(f"outbox {outbox.name} shards by region: --region is missing")
    if region is not None and not contract.has_region(outbox):
        raise errors.UsageError(f"outbox {outbox.name} has no region_name: --region does not apply")


def choose_scope(config: Config, text: str) -> int:
    """
    Return the number of the scope that a command means, by its name or number.

    Raises:
        UsageError: No such scope; names the nearest.
    """
    return _choose_number("scope", text, {name: scope.value for name, scope in config.scopes.items()})


def choose_category(config: Config, text: str) -> int:
    """
    Return the number of the category that a command means, by its name or number.

    A number that the configuration does not know is taken too: rows may bear it.

    Raises:
        UsageError: No such name; names the nearest.
    """
    return _choose_number("category", text, {name: category.value for name, category in config.categories.items()})


def _choose_number(kind: str, text: str, numbers: dict[str, int]) -> int:
    if text in numbers:
        return numbers[text]
    if _INTEGER.fullmatch(text) and -(2**31) <= int(text) < 2**31:
        return int(text)
    raise errors.UsageError(
        f"there is no {kind} {text}{suggest.nearest(text, numbers)}",
        hint=f"Names and numbers: {', '.join(f'{name} = {number}' for name, number in numbers.items()) or 'none'}.",
    )


def parse_duration(text: str, what: str) -> dt.timedelta:
    """
    Turn `90s`, `15m`, `2h`, `3d`, or some of them together (`1h30m`), into a duration.

    Raises:
        UsageError: It is none, is not above 0, or is beyond 10 years.
    """
    found = _DURATION.fullmatch(text.strip())
    seconds = sum(int(n or 0) * s for n, s in zip(found.groups(), (86_400, 3_600, 60, 1), strict=True)) if found else 0
    if not 0 < seconds <= DURATION_S_MAX:
        hint = "Write it as 90s, 15m, 2h, 3d or 1h30m: more than nothing, at most ten years."
        raise errors.UsageError(f"{what} must be a duration, got {text[:60]!r}", hint=hint)
    return dt.timedelta(seconds=seconds)


def parse_identifier(text: str, sql_type: str, what: str) -> Identifier:
    """
    Turn a shard or object identifier as typed into a value of its column's type.

    Args:
        text: As typed.
        sql_type: As in `inspection.Table`: `bigint`, `uuid`, `text` …
        what: Opens the message, e.g. `--shard`.

    Raises:
        InvalidOutboxError: It is not of this type.
    """
    if sql_type in _INTEGER_BITS:
        return _parse_integer(text, sql_type, what)
    if sql_type == "uuid":
        try:
            return uuid.UUID(text)
        except ValueError:
            raise errors.InvalidOutboxError(f"{what} must be a uuid, got {text!r}") from None
    return parse_text(text, what)


def _parse_integer(text: str, sql_type: str, what: str) -> int:
    bound = 2 ** (_INTEGER_BITS[sql_type] - 1)
    value = int(text) if _INTEGER.fullmatch(text) else bound
    if not -bound <= value < bound:
        raise errors.InvalidOutboxError(f"{what} must be an integer ({sql_type}), got {text[:60]!r}")
    return value


def parse_text(text: str, what: str) -> str:
    """
    Return a text that PostgreSQL can store.

    Raises:
        InvalidOutboxError: It holds a NUL, or bytes that are not UTF-8.
    """
    try:
        text.encode()
    except UnicodeEncodeError:
        raise errors.InvalidOutboxError(f"{what} is not valid UTF-8") from None
    if "\0" in text:
        raise errors.InvalidOutboxError(f"{what} holds a NUL character, which PostgreSQL cannot store")
    return text


def read_json(argument: str | None, what: str) -> str | None:
    """
    Return the JSON of an argument, checked but as it was written: its numbers may be of any size.

    Args:
        argument: JSON; `-` for standard input; `@FILE` for a file. None stays None.
        what: Opens the message, e.g. `--payload`.

    Raises:
        InvalidOutboxError: It is not JSON; tells where.
        UsageError: The file cannot be read.
    """
    if argument is None:
        return None
    text = _read_argument(argument, what)
    try:
        json.loads(text, parse_int=str, parse_float=str, parse_constant=_refuse_constant)
    except json.JSONDecodeError as exc:
        place = f"line {exc.lineno}, column {exc.colno}"
        raise errors.InvalidOutboxError(f"{what} is not JSON: {exc.msg.lower()} ({place})") from None
    except (ValueError, RecursionError) as exc:
        reason = "it is nested too deeply" if isinstance(exc, RecursionError) else str(exc)
        raise errors.InvalidOutboxError(f"{what} is not JSON: {reason}") from None
    return text


def _read_argument(argument: str, what: str) -> str:
    try:
        if argument == "-":
            return sys.stdin.buffer.read().decode("utf-8-sig")
        if argument.startswith("@"):
            return Path(argument[1:]).read_text(encoding="utf-8-sig")
    except OSError as exc:
        raise errors.UsageError(f"{what}: cannot read {argument[1:]}: {exc.strerror}") from exc
    except UnicodeDecodeError as exc:
        raise errors.InvalidOutboxError(f"{what} is not UTF-8 (byte {exc.start})") from None
    return parse_text(argument, what)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number in JSON")
