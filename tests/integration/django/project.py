"""The settings of the test project; a process of its own gets its database by the environment."""

from __future__ import annotations

import os
from typing import Any

from psycopg.conninfo import conninfo_to_dict


def database(dsn: str) -> dict[str, Any]:
    """Write a DSN as Django has it."""
    parts = conninfo_to_dict(dsn)
    names = {"NAME": "dbname", "USER": "user", "PASSWORD": "password", "HOST": "host", "PORT": "port"}
    return {key: parts.get(name, "") for key, name in names.items()} | {"ENGINE": "django.db.backends.postgresql"}


def _of_environment(alias: str) -> dict[str, Any]:
    """The test runner makes a database of another name beside it, for each alias one."""
    given = database(os.environ.get("SHOP_DSN", ""))
    return given | {"TEST": {"NAME": f"{given['NAME']}_{alias}_made"}}


DATABASES = {alias: _of_environment(alias) for alias in ("default", "archive")}
INSTALLED_APPS = ["outboxd.contrib.django", "tests.integration.django.shop"]
OUTBOXD_CONFIG: str | dict[str, str] | None = os.environ.get("SHOP_CONFIG")
if "SHOP_ARCHIVE_CONFIG" in os.environ:
    OUTBOXD_CONFIG = {"default": os.environ["SHOP_CONFIG"], "archive": os.environ["SHOP_ARCHIVE_CONFIG"]}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING_CONFIG = None
TIME_ZONE = "UTC"
USE_TZ = True
