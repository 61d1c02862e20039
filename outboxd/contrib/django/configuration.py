"""Which configuration of outboxd a database of the settings has: `OUTBOXD_CONFIG`, or the usual places."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS

from outboxd.producer import Producer
from outboxd.producer.on_django import alias_of

_producers: dict[Path | None, Producer] = {}
_lock = threading.Lock()


def path_of(alias: str = DEFAULT_DB_ALIAS) -> Path | None:
    """
    Tell the file for a database; None: the daemon's usual places.

    Raises:
        ImproperlyConfigured: OUTBOXD_CONFIG is a dict, and this database is not in it.
    """
    given: Any = getattr(settings, "OUTBOXD_CONFIG", None)
    if isinstance(given, Mapping):
        if alias not in given:
            raise ImproperlyConfigured(f"OUTBOXD_CONFIG names no configuration for the database {alias}")
        given = given[alias]
    return None if given is None else Path(given)


def producer_on(target: Any = None) -> Producer:
    """Return what writes messages through a connection or `atomic`; None: through the default database."""
    return producer_of(alias_of(target) or DEFAULT_DB_ALIAS)


def producer_of(alias: str) -> Producer:
    """
    Return what writes the messages of a database; its configuration is loaded at the first call.

    Raises:
        ConfigError: The configuration is missing or wrong.
    """
    path = path_of(alias)
    with _lock:
        if path not in _producers:
            _producers[path] = Producer.load(path)
        return _producers[path]


def loaded() -> list[Producer]:
    """Return those that have been loaded, to close what they have opened."""
    return list(_producers.values())


def forget(*, setting: str = "OUTBOXD_CONFIG", **_: Any) -> None:
    """Load anew at the next call: what `override_settings` in a test asks for."""
    if setting == "OUTBOXD_CONFIG":
        _producers.clear()


setting_changed.connect(forget)
