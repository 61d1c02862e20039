"""The application as Django sees it."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register
from django.db.models.signals import post_migrate


class OutboxdConfig(AppConfig):
    """Lets `outbox_context` find its configuration in the settings."""

    name = "outboxd.contrib.django"
    label = "outboxd"
    verbose_name = "outboxd"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        """Tell the producers where their configuration is, loaded with the first message; check models; serve tests."""
        from outboxd import producer
        from outboxd.contrib.django import checks, configuration, tables

        configuration.note_names()
        producer.choose_by(configuration.producer_on)
        register(checks.check_models, Tags.models)
        register(checks.check_setting)
        post_migrate.connect(tables.follow_django, sender=self)
