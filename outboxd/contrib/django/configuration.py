"""
Which configuration of outboxd a database of the settings has: `OUTBOXD_CONFIG`, or the usual places.

The database itself is the configuration's, because Django may go through a pooler. But where Django has been led
elsewhere, to one for tests, it is that one: else what a test flushes would be somebody else's messages.
"""

from __future__ import annotations

import dataclasses
import os
import re
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec
from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.core.signals import setting_changed
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.creation import TEST_DATABASE_PREFIX
from psycopg.conninfo import make_conninfo
from psycopg.pq import Conninfo

from outboxd import load, log
from outboxd.producer import Producer, counts
from outboxd.producer.on_django import alias_of

_PARAMETERS = {each.keyword.decode() for each in Conninfo.get_defaults()}
"""What libpq knows; Django has arguments of psycopg among them."""
_producers: dict[tuple[Path | None, str], Producer] = {}
_lock = threading.Lock()
_names: dict[str, str] = {}


def path_of(alias: str = DEFAULT_DB_ALIAS) -> Path | None:
    """
    Tell the file for a database; None: the daemon's usual places.

    Raises:
        ImproperlyConfigured: OUTBOXD_CONFIG is a dict, and this database is not in it; or it is something else.
    """
    given: Any = getattr(settings, "OUTBOXD_CONFIG", None)
    if isinstance(given, Mapping):
        if alias not in given:
            raise ImproperlyConfigured(f"OUTBOXD_CONFIG names no configuration for the database {alias}")
        given = given[alias]
    if not isinstance(given, str | os.PathLike | None):
        raise ImproperlyConfigured(f"OUTBOXD_CONFIG must be a path, or a dict from database to path, got {given!r}")
    return None if given is None else Path(given)


def aliases() -> list[str]:
    """Name the databases that have outboxes: those that OUTBOXD_CONFIG names, or the default one."""
    given: Any = getattr(settings, "OUTBOXD_CONFIG", None)
    return [alias for alias in connections if alias in given] if isinstance(given, Mapping) else [DEFAULT_DB_ALIAS]


def note_names() -> None:
    """Remember what the settings call the databases, before Django gives those that it makes for tests other names."""
    _names.update({alias: str(given["NAME"]) for alias, given in connections.settings.items()})


def is_elsewhere(alias: str) -> bool:
    """Whether Django has been led to another database than the settings name: to one of tests, mostly."""
    return str(connections[alias].settings_dict["NAME"]) != _names.get(alias)


def is_test(alias: str) -> bool:
    """Whether Django has made this database for tests: that of the settings never is one, and their names are known."""
    name = str(connections[alias].settings_dict["NAME"])
    made = [re.escape(str(each["TEST"]["NAME"])) for each in connections.settings.values() if each["TEST"]["NAME"]]
    pattern = "|".join(
        [f"{TEST_DATABASE_PREFIX}.*", *(rf"{each}(_\d+)?" for each in made)]
    )  # _2: of the second process
    return is_elsewhere(alias) and re.fullmatch(pattern, name) is not None


def producer_on(target: Any = None, said: Producer | None = None) -> Producer:
    """
    Return what writes messages through a connection or `atomic`; None: through the default database.

    Args:
        target: The connection.
        said: What this process uses where nothing else is said: a daemon its own configuration. That of another
            database's daemon does not count: it would write another's numbers.
    """
    alias = alias_of(target) or DEFAULT_DB_ALIAS
    if said is None or _is_of_another(said, alias):
        return producer_of(alias)
    return said


def _is_of_another(said: Producer, alias: str) -> bool:
    if not isinstance(getattr(settings, "OUTBOXD_CONFIG", None), Mapping):
        return False
    others = {path_of(other) for other in aliases() if other != alias}
    return said.source in others and (alias not in aliases() or said.source != path_of(alias))


def producer_of(alias: str) -> Producer:
    """
    Return what writes the messages of a database; its configuration is loaded at the first call.

    Raises:
        ConfigError: The configuration is missing or wrong.
    """
    key = (path_of(alias), str(connections[alias].settings_dict["NAME"]))
    with _lock:
        if key not in _producers:
            counts.publish()
            log.configure_as_library()
            _producers[key] = Producer(load_of(alias))
        return _producers[key]


def load_of(alias: str) -> load.Loaded:
    """
    Load the configuration for a database.

    Raises:
        ConfigError: It is missing or wrong.
    """
    loaded = load.load(path_of(alias))
    if load.session_dsn(loaded) and not is_elsewhere(alias):
        return loaded
    config = msgspec.structs.replace(loaded.config, dsn=dsn_of(alias), session_dsn="")
    return dataclasses.replace(loaded, config=config, secret_files={})


def dsn_of(alias: str) -> str:
    """Write down where Django connects to."""
    given = connections[alias].get_connection_params()
    return make_conninfo(**{name: value for name, value in given.items() if name in _PARAMETERS and value})


def close_flushers() -> None:
    """Close the connections that flushes have left open."""
    for producer in list(_producers.values()):
        producer.close_blocking()


def forget(*, setting: str = "OUTBOXD_CONFIG", **_: Any) -> None:
    """Load anew at the next call: what `override_settings` in a test asks for."""
    if setting == "OUTBOXD_CONFIG":
        _producers.clear()


setting_changed.connect(forget)
