"""What is saved here has its message in the same transaction."""

from __future__ import annotations

from django.db import models

from outboxd.contrib.django import OutboxProducingModel


class Account(OutboxProducingModel):
    """Whoever saves one waits until others have heard of it."""

    plan = models.CharField(max_length=20)

    outbox_category = "PLAN_UPDATE"
    outbox_shard = "pk"
    default_flush = True

    def outbox_payload(self) -> object:
        return {"plan": self.plan}


class Invoice(OutboxProducingModel):
    """The daemon tells others of it."""

    account = models.ForeignKey(Account, models.CASCADE)
    amount = models.IntegerField()

    outbox_category = "INVOICE"
    outbox_shard = "account"

    def outbox_payload(self) -> object:
        return {"amount": self.amount}
