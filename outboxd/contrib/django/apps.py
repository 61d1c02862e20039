"""The application as Django sees it."""

from __future__ import annotations

from django.apps import AppConfig
from django.core.checks import Tags, register


class OutboxdConfig(AppConfig):
    """Lets `outbox_context` find its configuration in the settings."""

    name = "outboxd.contrib.django"
    label = "outboxd"
    verbose_name = "outboxd"

    def ready(self) -> None:
        """Tell the producers where their configuration is, which is loaded with the first message; check models."""
        from outboxd import producer
        from outboxd.contrib.django import checks, configuration

        producer.choose_by(configuration.producer_on)
        register(checks.check_models, Tags.models)
