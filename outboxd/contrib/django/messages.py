"""What a row of a producing model says: the messages of one that was written or deleted."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any, NamedTuple

from django.db import models

from outboxd import errors
from outboxd.producer.draft import NewMessage

if TYPE_CHECKING:
    from django.db.models import Field, Model

    from outboxd.contrib.django.models import OutboxProducingModel


class Place(NamedTuple):
    """Where a row's message goes."""

    shard: Any
    region: str | None


def place_of(row: OutboxProducingModel) -> Place:
    """Tell where a row's message goes: the value of a field, or what a method returns; and the region."""
    field = field_of(type(row), row.outbox_shard)
    if field is not None:
        return Place(_value(row, field), row.outbox_region())
    value = getattr(row, row.outbox_shard)
    return Place(value() if callable(value) else value, row.outbox_region())


def message_of(row: OutboxProducingModel, place: Place) -> NewMessage:
    """Build the message of a row, for one place."""
    return NewMessage(
        category=row.outbox_category,
        shard_identifier=place.shard,
        object_identifier=key_of(row),
        payload=row.outbox_payload(),
        region_name=place.region,
    )


def address_of(message: NewMessage) -> tuple[Any, ...]:
    """Return what tells messages apart that are not coalesced."""
    return (message.category, message.object_identifier, message.shard_identifier, message.region_name)


def of_write(old: OutboxProducingModel | None, new: OutboxProducingModel) -> list[NewMessage]:
    """Tell the place of a row that it was written, and the one that it was in; nothing if no watched field differs."""
    place = place_of(new)
    if old is None:
        return [message_of(new, place)]
    before = place_of(old)
    watched = watched_by(type(new))
    if watched and before == place and all(_comparable(old, each) == _comparable(new, each) for each in watched):
        return []
    return [message_of(new, each) for each in dict.fromkeys([before, place])]


def watched_by(model: type[OutboxProducingModel]) -> list[Field[Any, Any]]:
    """Return the fields that count in an update; none: every update counts."""
    return [field for name in model.outbox_fields if (field := field_of(model, name)) is not None]


def may_matter(model: type[OutboxProducingModel], names: Iterable[str]) -> bool:
    """Whether an update of these fields, of the model or of one that is derived from it, may be one that counts."""
    changed = {field for name in names if (field := field_of(model, name)) is not None}
    if not changed:  # they are of a derived model's own table
        return False
    shard = field_of(model, model.outbox_shard)
    if not model.outbox_fields or shard is None or has_regions(model):
        return True
    counting = {*watched_by(model), shard}
    return bool(counting & changed) or any(field.generated for field in counting)


def names_one_of(model: type[Model], names: Iterable[str]) -> bool:
    """Whether one of the fields of a model's own table is among these."""
    own = {name for field in model._meta.local_concrete_fields for name in (field.name, field.attname)}
    return not own.isdisjoint(names)


def producing(model: type[OutboxProducingModel]) -> list[type[OutboxProducingModel]]:
    """Return a model, and those parents of it with tables of their own that have messages, too; it comes last."""
    from outboxd.contrib.django.models import OutboxProducingModel

    own = model._meta.concrete_model
    parents = [each for each in model._meta.all_parents if issubclass(each, OutboxProducingModel) and each is not own]
    return [*reversed(parents), model]


def root_key(model: type[OutboxProducingModel]) -> Any:
    """Return the primary key that the identifiers of a model's messages come from: of its first parent with a table."""
    own: Any = model._meta.concrete_model
    return producing(own)[0]._meta.pk


def has_regions(model: type[OutboxProducingModel]) -> bool:
    """Whether a model's messages have regions, as far as the class tells."""
    from outboxd.contrib.django.models import OutboxProducingModel

    return model.outbox_region is not OutboxProducingModel.outbox_region


def refuse_key(model: type[OutboxProducingModel], names: Iterable[str]) -> None:
    """
    Refuse to change what identifies a row.

    Raises:
        OutboxContextError: One of the fields is the primary key.
    """
    keys = {"pk", *(field.name for field in model._meta.pk_fields), *(f.attname for f in model._meta.pk_fields)}
    if keys & set(names):
        raise refused(model, "an update of the primary key", "which rows it made of which is not known")


def refused(model: type[Model], what: str, why: str) -> errors.OutboxContextError:
    """Build the error for what would pass by the messages."""
    return errors.OutboxContextError(
        f"{model._meta.label}: {what} cannot write its messages: {why}",
        hint=f'Let triggers write them: capture = true in the [[model]] of table "{model._meta.db_table}", with a plain'
        " models.Model.",
    )


def field_of(model: type[Model], name: str) -> Field[Any, Any] | None:
    """Return the field of that name, or whose column's attribute is called so; None when it is none that is stored."""
    if name == "pk":
        return model._meta.pk
    return next((each for each in model._meta.concrete_fields if name in (each.name, each.attname)), None)


def stored(model: type[Model], using: str) -> models.QuerySet[Any]:
    """Return all rows of a model as this database has them, whatever its managers leave out or join."""
    return models.QuerySet(model, using=using).order_by()


def locked(model: type[Model], using: str) -> models.QuerySet[Any]:
    """Return them locked as an update locks them: others may insert rows that refer to them meanwhile."""
    return stored(model, using).select_for_update(no_key=True)


def as_stored(rows: list[Any], model: type[Model], using: str) -> Iterator[Any]:
    """Give out these rows as they have been written: those that hold what the database computes are read anew."""
    computed = {key_of(row) for row in rows if is_computed(row)}
    found = {row.pk: row for row in of_keys(model, using, list(computed))}
    for row in rows:
        yield found.get(key_of(row), row)


def is_computed(row: Model) -> bool:
    """Whether the database has computed a value that this object does not have."""
    generated = any(field.generated for field in row._meta.concrete_fields)
    return generated or any(hasattr(value, "resolve_expression") for value in vars(row).values())


KEYS_MAX = 10_000
"""In one statement: with `server_side_binding` PostgreSQL takes 65 535 parameters at most."""


def of_keys(model: type[Model], using: str, keys: list[Any]) -> Iterator[Any]:
    """Read rows by their keys."""
    for some in batches(keys):
        yield from stored(model, using).filter(pk__in=some).order_by("pk")


def batches(keys: list[Any]) -> Iterator[list[Any]]:
    """Cut a list into what one statement takes."""
    return (keys[start : start + KEYS_MAX] for start in range(0, len(keys), KEYS_MAX))


def key_of(row: Model) -> Any:
    """Return the primary key as its column has it."""
    return _value(row, row._meta.pk)


def _value(row: Model, field: Field[Any, Any]) -> Any:
    """Return the value of a field as its column has it: Django takes `"7"` for a number, and an outbox does not."""
    value = getattr(row, field.attname)
    return None if value is None else field.get_prep_value(value)


def _comparable(row: Model, field: Field[Any, Any]) -> Any:
    """Return what differs where the column does: 1, true and 1.0 are one for Python, and three in jsonb."""
    value = getattr(row, field.attname)
    if not isinstance(field, models.JSONField) and not isinstance(value, (dict, list, tuple)):
        return value
    try:
        text = json.dumps(value, cls=getattr(field, "encoder", None))
    except TypeError:
        return repr(value)
    return json.dumps(json.loads(text), sort_keys=True)
