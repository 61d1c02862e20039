"""
Which options there are, what each may hold, and what a value means. Pure: `options` reads with it, `switching` writes.

| key                                                                | holds                                     |
|--------------------------------------------------------------------|-------------------------------------------|
| `outbox.disabled_outboxes`                                         | names of outboxes                         |
| `outbox.disabled_categories`                                       | names of categories                       |
| a scope's `disabled_shards_option`, or `outbox.disabled_shards.<SCOPE>` | identifiers of shards                |
| `outbox_replication.<table>.replication_version`                   | the highest version that is walked        |
| `outbox_replication.<table>.backfill.target_regions`               | names of the regions that get messages    |
"""

from __future__ import annotations

import json
import re
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import TYPE_CHECKING, Any, Literal

import msgspec

from outboxd import suggest

if TYPE_CHECKING:
    from outboxd.config import Config, ModelConfig

DISABLED_OUTBOXES = "outbox.disabled_outboxes"
DISABLED_CATEGORIES = "outbox.disabled_categories"
DIGITS_MAX = 1_000
EXPONENT_MAX = 131_072
"""That of PostgreSQL's numeric."""

_UUID = re.compile("[0-9a-fA-F]{32}")

Kind = Literal["outbox", "category", "shard", "version", "regions"]


@dataclass(frozen=True, kw_only=True)
class Key:
    """
    One option.

    Attributes:
        name: What stands in `outboxd.option`.
        kind: The first three switch things off, the others steer a backfill.
        expected: What its value must be, for people.
        names: What may stand in its list; None: any text.
        takes_numbers: Whether whole numbers may stand in its list.
        scopes: Numbers of the scopes whose shards it switches off; several scopes may name one option.
        table: Of the backfill.
    """

    name: str
    kind: Kind
    expected: str
    names: tuple[str, ...] | None = None
    takes_numbers: bool = False
    scopes: tuple[int, ...] = ()
    table: str = ""

    def read(self, text: str) -> tuple[Any, list[str]]:
        """
        Tell what a value means.

        Args:
            text: JSON.

        Returns:
            A number for a version, else a list of texts: only what means something; 0 or nothing where the whole
            means nothing. And what is wrong with it, each a line that begins with the key.
        """
        value = parse(text)
        if self.kind == "version":
            if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
                return value, []
            return 0, [self._complaint(text)]
        if not isinstance(value, list):
            return [], [self._complaint(text)]
        items = [(item, self._item(item)) for item in value]
        problems = [
            self._complaint(str(item) if isinstance(item, Decimal) else json.dumps(item, default=float), item)
            for item, meaning in items
            if meaning is None
        ]
        return [meaning for _, meaning in items if meaning is not None], list(dict.fromkeys(problems))

    def _item(self, item: Any) -> str | None:
        if self.takes_numbers and isinstance(item, Decimal):
            return canonical(item) if item.adjusted() < EXPONENT_MAX and item == item.to_integral_value() else None
        if self.takes_numbers and isinstance(item, int) and not isinstance(item, bool):
            return canonical(item)
        if not isinstance(item, str):
            return None
        if self.names is None:
            return canonical(item) if self.kind == "shard" else item
        return item if item in self.names else None

    def _complaint(self, text: str, item: Any = None) -> str:
        got = f"{self.name}: expected {self.expected}, got {text[:60]}"
        return got + suggest.nearest(item, self.names) if isinstance(item, str) and self.names is not None else got


def parse(text: str) -> Any:
    """Read JSON exactly, as PostgreSQL does: a number is an int or a Decimal. None, where that cannot be read."""
    try:
        return json.loads(text, parse_int=_whole, parse_float=Decimal)
    except (ValueError, RecursionError, InvalidOperation):
        return None


def entries(text: str) -> list[str] | None:
    """Return the entries of a list as they are written; None where it is none, or is nested too deeply to tell."""
    try:
        return [bytes(item).decode() for item in msgspec.json.decode(text, type=list[msgspec.Raw])]
    except (msgspec.MsgspecError, RecursionError):
        return None


def _whole(text: str) -> int | Decimal:
    """Read a whole number; Python takes no int of more than 4 300 digits."""
    return int(text) if len(text) <= DIGITS_MAX else Decimal(text)


def known(config: Config) -> dict[str, Key]:
    """Return every option that means something in this configuration, by its name, in the order of the table above."""
    outboxes = tuple(outbox.name for outbox in config.outbox)
    keys = [
        Key(name=DISABLED_OUTBOXES, kind="outbox", expected="a list of names of outboxes", names=outboxes),
        Key(
            name=DISABLED_CATEGORIES,
            kind="category",
            expected="a list of names of categories",
            names=tuple(config.categories),
        ),
        *_shard_keys(config),
    ]
    for model in config.model:
        keys += _model_keys(model)
    return {key.name: key for key in keys}


def shards_key(config: Config, scope: str) -> str:
    """Return the option that switches shards of a scope off, by the scope's name."""
    return config.scopes[scope].disabled_shards_option or f"outbox.disabled_shards.{scope}"


def canonical(identifier: Any) -> str:
    """
    Write an identifier so that two spellings of one shard are equal; both sides of a comparison must be written so.

    A uuid in any spelling becomes that of PostgreSQL (a digest of 32 hexadecimal digits, too), a whole number loses its
    point.
    """
    if isinstance(identifier, float) and identifier.is_integer():
        return str(int(identifier))
    text = str(identifier)
    if isinstance(identifier, Decimal) and identifier == identifier.to_integral_value():
        text = f"{identifier:f}".partition(".")[0] if identifier else "0"
    return str(uuid.UUID(text)) if _UUID.fullmatch(text.replace("-", "")) else text


def canonical_sql(alias: str) -> str:
    """Return the same as SQL, of `alias.shard_identifier`; as a text, a number has lost its point already."""
    text = f"{alias}.shard_identifier::text"
    bare = f"replace({text}, '-', '')"
    return f"CASE WHEN {bare} ~ '^{_UUID.pattern}$' THEN {bare}::uuid::text ELSE {text} END"


def _shard_keys(config: Config) -> list[Key]:
    scopes: dict[str, list[int]] = {}
    for name, scope in config.scopes.items():
        scopes.setdefault(shards_key(config, name), []).append(scope.value)
    expected = "a list of shard identifiers, whole numbers or strings"
    return [
        Key(name=name, kind="shard", expected=expected, takes_numbers=True, scopes=tuple(values))
        for name, values in scopes.items()
    ]


def _model_keys(model: ModelConfig) -> Sequence[Key]:
    prefix = f"outbox_replication.{model.table}"
    regions = None if model.region_names_sql.strip() or not model.region_names else tuple(model.region_names)
    return [
        Key(
            name=f"{prefix}.replication_version",
            kind="version",
            expected="a whole number, 0 or more",
            table=model.table,
        ),
        Key(
            name=f"{prefix}.backfill.target_regions",
            kind="regions",
            expected="a list of names of regions",
            names=regions,
            table=model.table,
        ),
    ]
