"""Two requests that can be made."""

from __future__ import annotations

import json

from django.http import HttpRequest, JsonResponse
from django.urls import path

from outboxd import OutboxFlushError

from .models import Account, Invoice


def plan(request: HttpRequest, account: int) -> JsonResponse:
    """Set the plan of an account; the answer comes when others have heard of it."""
    try:
        Account(pk=account, plan=json.loads(request.body)["plan"]).save()
    except OutboxFlushError:  # it is saved, and the daemon tries again
        return JsonResponse({"delivered": False}, status=202)
    return JsonResponse({"delivered": True})


def invoices(request: HttpRequest, account: int) -> JsonResponse:
    """Write an invoice."""
    made = Invoice.objects.create(account_id=account, amount=json.loads(request.body)["amount"])
    return JsonResponse({"id": made.pk}, status=201)


urlpatterns = [path("accounts/<int:account>/plan", plan), path("accounts/<int:account>/invoices", invoices)]
