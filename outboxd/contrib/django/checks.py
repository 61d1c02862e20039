"""What `manage.py check` says of producing models, before the first message is written."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig, apps
from django.conf import settings
from django.core.checks import CheckMessage, Error
from django.core.checks import Warning as CheckWarning
from django.core.exceptions import ImproperlyConfigured
from django.db import connections, models, router

from outboxd import errors, load, suggest
from outboxd.contrib.django import configuration, messages
from outboxd.contrib.django.models import OutboxProducingModel
from outboxd.contrib.django.querysets import OutboxProducingQuerySet
from outboxd.producer.draft import NewMessage, find_route

if TYPE_CHECKING:
    from outboxd.config import Config

Model = type[OutboxProducingModel]

_TOLD = (models.CASCADE, models.PROTECT, models.RESTRICT, models.DO_NOTHING)
_TYPES = {"bigint": ("smallint", "integer", "bigint"), "uuid": ("uuid",), "text": ("varchar", "text", "char", "citext")}


def check_models(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Check the producing models of these applications; None: of all."""
    chosen = apps.get_models() if app_configs is None else [m for each in app_configs for m in each.get_models()]
    producing = [model for model in chosen if issubclass(model, OutboxProducingModel)]
    found = [problem for model in producing for problem in (*_of_declaration(model), *_of_deletion(model))]
    by_database: dict[str, list[Model]] = {}
    for model in producing:
        by_database.setdefault(router.db_for_write(model), []).append(model)
    for alias, of_alias in by_database.items():
        found += _of_configuration(alias, of_alias)
    return found


def check_setting(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Check what OUTBOXD_CONFIG is; of a database that it misspells nobody would be told anything."""
    given: Any = getattr(settings, "OUTBOXD_CONFIG", None)
    strange = [str(alias) for alias in given if alias not in connections] if isinstance(given, Mapping) else []
    said = [f"OUTBOXD_CONFIG: there is no database {alias}{suggest.nearest(alias, connections)}" for alias in strange]
    for alias in configuration.aliases():
        try:
            configuration.path_of(alias)
        except ImproperlyConfigured as exc:
            said.append(str(exc))
    return [Error(text, hint="Correct it in the settings.", id="outboxd.E009") for text in said]


def _of_declaration(model: Model) -> Iterator[CheckMessage]:
    for name in ("outbox_category", "outbox_shard"):
        if not isinstance(getattr(model, name, None), str):
            yield Error(f"{name} is missing", hint=f'Write {name} = "…" in the class.', obj=model, id="outboxd.E003")
    shard = getattr(model, "outbox_shard", None)
    if isinstance(shard, str):
        yield from _of_shard(model, shard)
    if isinstance(model.outbox_fields, str):
        yield Error("outbox_fields is a str", hint="Write a list of names.", obj=model, id="outboxd.E003")
        return
    for name in model.outbox_fields:
        if messages.field_of(model, name) is None:
            yield Error(f"outbox_fields: there is no field {name}", obj=model, id="outboxd.E004")
    yield from _of_managers(model)


def _of_shard(model: Model, shard: str) -> Iterator[CheckMessage]:
    field = messages.field_of(model, shard)
    if field is None and not callable(getattr(model, shard, None)):
        yield Error(f"outbox_shard: there is no field or method {shard}", obj=model, id="outboxd.E004")
    if field is not None and field.null:
        hint = "Let outbox_shard name a method that always returns one, or the field be NOT NULL."
        yield Error(f"outbox_shard: {shard} may be null, and no shard is", hint=hint, obj=model, id="outboxd.E006")


def _of_managers(model: Model) -> Iterator[CheckMessage]:
    for name, manager in (("default", model._default_manager), ("base", model._base_manager)):
        if not isinstance(manager.get_queryset(), OutboxProducingQuerySet):
            hint = "Make it an OutboxProducingManager, or from_queryset of an OutboxProducingQuerySet"
            hint += "." if name == "default" else ', and name it in Meta: base_manager_name = "…".'
            text = f"the {name} manager, {manager.name}, does not write messages"
            yield Error(text, hint=hint, obj=model, id="outboxd.E001")
    query = model._base_manager.get_queryset().query
    if query.where or query.is_sliced:
        yield Error(
            f"the base manager, {model._base_manager.name}, leaves rows out, and Django saves and deletes by it",
            hint='Add rows = OutboxProducingManager() behind it, and in Meta: base_manager_name = "rows".',
            obj=model,
            id="outboxd.E001",
        )


def _of_deletion(model: Model) -> Iterator[CheckMessage]:
    """Refuse what has Django change rows without their manager, when the row that they refer to is deleted."""
    for field in model._meta.concrete_fields:
        on_delete = getattr(field.remote_field, "on_delete", None)
        if on_delete is None or on_delete in _TOLD or getattr(on_delete, "lazy_sub_objs", False):
            continue
        if isinstance(getattr(model, "outbox_shard", None), str) and messages.may_matter(model, [field.name]):
            how = getattr(on_delete, "__name__", "a function").replace("set_on_delete", "SET of a callable")
            yield Error(
                f"{field.name}: on_delete={how} changes rows without a message",
                hint="Take SET_NULL, SET of a value, CASCADE or PROTECT, or let triggers write the messages: capture.",
                obj=model,
                id="outboxd.E007",
            )


def _of_shared(config: Config, producing: Iterable[Model]) -> Iterator[CheckMessage]:
    """Refuse two tables with one category: their rows have the same numbers, and what is about both is coalesced."""
    first: dict[str, Model] = {}
    for model in producing:
        category = getattr(model, "outbox_category", "")
        if category not in config.categories or not config.categories[category].coalesce:
            continue
        if isinstance(messages.root_key(model), models.UUIDField):
            continue
        other = first.setdefault(category, model)
        if messages.root_key(other) is not messages.root_key(model):
            yield Error(
                f"outbox_category: {category} is also that of {other._meta.label}: messages of rows with one number"
                " would be coalesced, and one of the rows not be told of",
                hint="Give each table a category of its own.",
                obj=model,
                id="outboxd.E008",
            )


def _of_configuration(alias: str, producing: Sequence[Model]) -> Iterator[CheckMessage]:
    try:
        config = load.load(configuration.path_of(alias)).config
    except (errors.ConfigError, ImproperlyConfigured) as exc:
        yield Error(f"the configuration of outboxd for the database {alias}: {exc}", id="outboxd.E005")
        return
    for model in producing:
        yield from _of_category(config, model)
        yield from _of_types(config, model, alias)
    yield from _of_shared(config, producing)


def _of_category(config: Config, model: Model) -> Iterator[CheckMessage]:
    category = getattr(model, "outbox_category", None)
    if isinstance(category, str) and category not in config.categories:
        yield Error(
            f"outbox_category: there is no category {category}{suggest.nearest(category, config.categories)}",
            hint="Add it to the configuration of outboxd.",
            obj=model,
            id="outboxd.E002",
        )


def _of_types(config: Config, model: Model, alias: str) -> Iterator[CheckMessage]:
    """Compare the keys with what the outbox takes, as far as the configuration tells: the table may be another."""
    region = "any" if messages.has_regions(model) else None
    new = NewMessage(
        category=getattr(model, "outbox_category", ""), shard_identifier=0, object_identifier=0, region_name=region
    )
    try:
        outbox = find_route(config, new).outbox
    except errors.OutboxdError:  # of the category it is said already; of the region only its method knows
        return
    shard = getattr(model, "outbox_shard", None)
    for name in ("pk", shard) if isinstance(shard, str) else ("pk",):
        field = messages.field_of(model, name)
        type_ = None if field is None else field.db_type(connections[alias])
        if field is not None and not (type_ or "").startswith(_TYPES[outbox.key_type]):
            found = type_ or "no single column"
            yield CheckWarning(
                f"{field.name} is {found}, and outbox {outbox.name} has key_type {outbox.key_type}",
                hint="Give the model an outbox whose key_type fits.",
                obj=model,
                id="outboxd.W001",
            )
