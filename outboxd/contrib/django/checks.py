"""What `manage.py check` says of producing models, before the first message is written."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from django.apps import AppConfig, apps
from django.core.checks import CheckMessage, Error
from django.core.exceptions import ImproperlyConfigured
from django.db import router

from outboxd import errors, load, suggest
from outboxd.contrib.django import configuration, messages
from outboxd.contrib.django.models import OutboxProducingModel
from outboxd.contrib.django.querysets import OutboxProducingQuerySet

if TYPE_CHECKING:
    from outboxd.config import Config

Model = type[OutboxProducingModel]


def check_models(app_configs: Sequence[AppConfig] | None, **_: Any) -> list[CheckMessage]:
    """Check the producing models of these applications; None: of all."""
    chosen = apps.get_models() if app_configs is None else [m for each in app_configs for m in each.get_models()]
    models = [model for model in chosen if issubclass(model, OutboxProducingModel)]
    found = [problem for model in models for problem in _of_declaration(model)]
    by_database: dict[str, list[Model]] = {}
    for model in models:
        by_database.setdefault(router.db_for_write(model), []).append(model)
    for alias, of_alias in by_database.items():
        found += _of_configuration(alias, of_alias)
    return found


def _of_declaration(model: Model) -> Iterator[CheckMessage]:
    for name in ("outbox_category", "outbox_shard"):
        if not isinstance(getattr(model, name, None), str):
            yield Error(f"{name} is missing", hint=f'Write {name} = "…" in the class.', obj=model, id="outboxd.E003")
    shard = getattr(model, "outbox_shard", None)
    if isinstance(shard, str) and messages.field_of(model, shard) is None and not callable(getattr(model, shard, None)):
        yield Error(f"outbox_shard: there is no field or method {shard}", obj=model, id="outboxd.E004")
    for name in model.outbox_fields:
        if messages.field_of(model, name) is None:
            yield Error(f"outbox_fields: there is no field {name}", obj=model, id="outboxd.E004")
    for name, manager in (("default", model._default_manager), ("base", model._base_manager)):
        if not isinstance(manager.get_queryset(), OutboxProducingQuerySet):
            yield Error(
                f"the {name} manager, {manager.name}, does not write messages",
                hint="Make it an OutboxProducingManager, or from_queryset of an OutboxProducingQuerySet.",
                obj=model,
                id="outboxd.E001",
            )


def _of_configuration(alias: str, models: Sequence[Model]) -> Iterator[CheckMessage]:
    try:
        config = load.load(configuration.path_of(alias)).config
    except (errors.ConfigError, ImproperlyConfigured) as exc:
        yield Error(f"the configuration of outboxd for the database {alias}: {exc}", id="outboxd.E005")
        return
    for model in models:
        yield from _of_category(config, model)


def _of_category(config: Config, model: Model) -> Iterator[CheckMessage]:
    category = getattr(model, "outbox_category", None)
    if isinstance(category, str) and category not in config.categories:
        yield Error(
            f"outbox_category: there is no category {category}{suggest.nearest(category, config.categories)}",
            hint="Add it to the configuration of outboxd.",
            obj=model,
            id="outboxd.E002",
        )
