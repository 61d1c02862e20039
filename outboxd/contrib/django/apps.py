"""The application as Django sees it."""

from __future__ import annotations

from django.apps import AppConfig


class OutboxdConfig(AppConfig):
    """Lets `outbox_context` find its configuration in the settings."""

    name = "outboxd.contrib.django"
    label = "outboxd"
    verbose_name = "outboxd"

    def ready(self) -> None:
        """Tell the producers where their configuration is; it is loaded when the first message is written."""
        from outboxd import producer
        from outboxd.contrib.django import configuration

        producer.choose_by(configuration.producer_on)
