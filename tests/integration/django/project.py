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
INSTALLED_APPS = [
    "django.contrib.admin",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "outboxd.contrib.django",
    "tests.integration.django.shop",
]
MIDDLEWARE = [
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
]
TEMPLATES = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]
ALLOWED_HOSTS = ["testserver"]
ROOT_URLCONF = "tests.integration.django.shop.urls"
SECRET_KEY = "only of these tests"
PASSWORD_HASHERS = ["django.contrib.auth.hashers.MD5PasswordHasher"]
STATIC_URL = "static/"
OUTBOXD_CONFIG: str | dict[str, str] | None = os.environ.get("SHOP_CONFIG")
if "SHOP_ARCHIVE_CONFIG" in os.environ:
    OUTBOXD_CONFIG = {"default": os.environ["SHOP_CONFIG"], "archive": os.environ["SHOP_ARCHIVE_CONFIG"]}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
LOGGING_CONFIG = None
TIME_ZONE = "UTC"
USE_TZ = True
