"""Options as people see, set and unset them. Which there are, and what they may hold, is in `option_keys`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from outboxd import acts, choose, errors, option_keys, sql, suggest
from outboxd.query import Query, fetch
from outboxd.switching import ROWS_SHOWN_MAX, By, Row, array, identifier_types, parsed, rows_of

if TYPE_CHECKING:
    import asyncpg

    from outboxd.config import Config

_STATEMENTS = {name: sql.without_header(text) for name, text in sql.load("setting.sql").items()}
_ONLY = _STATEMENTS["only"] + "\n"


def options_query(config: Config, *, unset_too: bool, rows_max: int = ROWS_SHOWN_MAX, only: str | None = None) -> Query:
    """Ask for the options that are set, or for all that are known as well; or for *only* one of them."""
    known = [
        (
            sql.literal(key.name),
            sql.literal(key.expected),
            _boolean(key.kind != "version"),
            array(key.names, "text"),
            _boolean(key.takes_numbers),
        )
        for key in option_keys.known(config).values()
    ]
    which = "that are set, and those that could be" if unset_too else "that are set"
    return Query(
        about=f"The options {which}." if only is None else "One option, whether it is set or not.",
        numbers=[
            "It counts while its state is `in force`; `lifted`: it was unset for a while, and counts again from",
            "updated_at on. A problem says why a value, or a part of it, has no effect.",
        ],
        statement=_STATEMENTS["options"],
        unparsed=("value",),
        values={"rows_max": rows_max, "key": only},
        names={
            "schema": sql.quote(config.schema),
            "known": rows_of(known),
            "join": "FULL" if unset_too else "RIGHT",
            "only": "" if only is None else Query(about="", statement=_ONLY, names={}, shard_columns={}),
        },
        shard_columns={},
    )


async def find_option(connection: asyncpg.Connection, config: Config, name: str) -> Row:
    """
    Return one option as `options_query` has it; its state is `not set` where it is not.

    Raises:
        UsageError: It is not set and not known: names the nearest.
    """
    query = options_query(config, unset_too=True, only=choose.parse_text(name, "the key"))
    for row in await fetch(connection, query, "reading an option"):
        return row
    raise _unknown(config, name)


Unset = Literal["not set", "unset", "lifted"]
"""What came of it: there was nothing, it is gone for good, or it comes back."""


async def set_option(connection: asyncpg.Connection, config: Config, name: str, text: str, by: By) -> str:
    """
    Set an option, whatever it was.

    Args:
        connection: Anybody's.
        config: Says which options there are.
        name: The key.
        text: JSON. A category may be given by its number.
        by: Who, why, for how long.

    Returns:
        The value as it was written, JSON.

    Raises:
        UsageError: No such option, or a value that means nothing, or not all of it does.
    """
    key = option_keys.known(config).get(name)
    if key is None:
        raise _unknown(config, name)
    if key.kind == "category":
        text = _with_names(config, text)
    _, problems = key.read(text)
    if key.kind == "shard" and not problems:
        problems = _impossible_shards(key, text, await identifier_types(connection, config))
    if problems:
        raise errors.UsageError("; ".join(problems[:5]))
    async with acts.transaction(connection, f"setting option {name}"):
        await connection.execute(_render(config, "set_option"), name, text, by.author, by.reason, by.expires)
    return text


async def unset_option(connection: asyncpg.Connection, config: Config, name: str, by: By) -> Unset:
    """
    Unset an option; with `by.expires`, for a while.

    Raises:
        UsageError: It was not set and is not known: names the nearest.
    """
    async with acts.transaction(connection, f"unsetting option {name}"):
        if by.expires is None:
            found = await connection.fetchval(_render(config, "unset_option"), name)
            return _found(config, name, "unset" if found else "not set")
        comes_back = await connection.fetchval(_render(config, "lift_option"), name, by.expires)
    if comes_back is None:
        return _found(config, name, "not set")
    return "lifted" if comes_back else "unset"


def _found(config: Config, name: str, how: Unset) -> Unset:
    if how == "not set" and name not in option_keys.known(config):
        raise _unknown(config, name)
    return how


def _unknown(config: Config, name: str) -> errors.UsageError:
    known = option_keys.known(config)
    return errors.UsageError(
        f"there is no option {name}{suggest.nearest(name, known)}", hint="`outboxd options list --all` shows them."
    )


def _with_names(config: Config, text: str) -> str:
    """Put names for the numbers of categories."""
    items = option_keys.entries(text)
    if items is None:
        return text
    names = {str(category.value): json.dumps(name) for name, category in config.categories.items()}
    return f"[{', '.join(names.get(item, item) for item in items)}]"


def _impossible_shards(key: option_keys.Key, text: str, types: Sequence[str]) -> list[str]:
    identifiers, _ = key.read(text)
    found = [each for each in identifiers if not any(parsed(each, type_) == each for type_ in types)]
    listed = " or ".join(sorted(set(types)))
    return [f"{key.name}: expected identifiers of type {listed}, got {each[:60]!r}" for each in found]


def _render(config: Config, name: str) -> str:
    return sql.Renderer({"schema": sql.quote(config.schema)}, {}).render(_STATEMENTS[name])


def _boolean(value: bool) -> str:
    return str(value).lower()
