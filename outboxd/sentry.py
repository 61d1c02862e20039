"""Failing deliveries to Sentry, where the extra is installed and SENTRY_DSN is set. Payloads only when configured."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING, Any

import structlog

from outboxd.model import Unsent
from outboxd.version import __version__

if TYPE_CHECKING:
    from collections.abc import Callable

    from sentry_sdk.types import Event, Hint

    from outboxd.config import SentryConfig
    from outboxd.model import Failed, Message

log = structlog.get_logger()

VARIABLE = "SENTRY_DSN"
FLUSH_S_MAX = 2.0
CAPTURES_A_SECOND_MAX = 20


def reporter(config: SentryConfig) -> Callable[[Failed, Message | Unsent], None] | None:
    """
    Return what captures failing deliveries; None where nobody wants it.

    A receiver module that has set the SDK up itself keeps its own settings. Otherwise none of the SDK's integrations
    is used: the log is not sent, and nothing is patched. Without `send_payload` no local variables are sent either.
    Of very many failures some are left out: see `_Limit`.
    """
    if not os.environ.get(VARIABLE):
        return None
    try:
        import sentry_sdk
    except ImportError:
        log.warning("sentry.missing", hint=f"{VARIABLE} is set: install outboxd with the extra sentry")
        return None
    if not sentry_sdk.is_initialized():
        try:
            sentry_sdk.init(
                default_integrations=False, auto_enabling_integrations=False, release=f"outboxd@{__version__}"
            )
        except Exception as exc:  # a DSN that is none
            log.warning("sentry.refused", error=str(exc))
            return None

    limit = _Limit()

    def capture(failed: Failed, message: Message | Unsent) -> None:
        if not limit.admits():
            return
        with sentry_sdk.new_scope() as scope:
            if not config.send_payload:
                scope.add_event_processor(_without_variables)
            scope.set_tag("outbox.category", message.category_name)
            scope.set_tag("outbox.shard_scope", message.scope_name)
            scope.set_context("outbox", _context(message, with_payload=config.send_payload))
            if isinstance(message, Unsent):  # these texts name the message: each would be an issue of its own
                scope.fingerprint = [failed.error.replace(f" of message {message.id}", "")]
            if failed.exception is not None:
                sentry_sdk.capture_exception(failed.exception)
            else:
                sentry_sdk.capture_message(failed.error, level="error")

    return capture


class _Limit:
    """Admits so many captures a second: each takes 2 ms of the event loop, and a receiver may fail for everybody."""

    def __init__(self) -> None:
        self._second = 0
        self._count = 0

    def admits(self) -> bool:
        second = int(time.monotonic())
        if second != self._second:
            self._second, self._count = second, 0
        self._count += 1
        return self._count <= CAPTURES_A_SECOND_MAX


def flush() -> None:
    """Send what is queued, for two seconds at most. Blocks."""
    if "sentry_sdk" in sys.modules:
        sys.modules["sentry_sdk"].flush(FLUSH_S_MAX)


def _without_variables(event: Event, _hint: Hint) -> Event:
    """Drop the local variables of every frame: the message, and what a receiver has read from it, are among them."""
    if "exception" not in event:  # with attach_stacktrace, the SDK would add our own frames, behind all processors
        event.setdefault("threads", {"values": []})
    raised, threads = event.get("exception") or {}, event.get("threads") or {}
    for holder in (*raised.get("values", []), *threads.get("values", []), event):
        for frame in (holder.get("stacktrace") or {}).get("frames", []):
            frame.pop("vars", None)
    return event


def _context(message: Message | Unsent, *, with_payload: bool) -> dict[str, Any]:
    context = {
        "outbox": message.outbox,
        "message": message.id,
        "shard_identifier": str(message.shard_identifier),
        "object_identifier": str(message.object_identifier),
        "region_name": message.region_name,
        "attempt": message.attempt,
        "coalesced": message.coalesced,
    }
    return context | ({"payload": message.payload} if with_payload and not isinstance(message, Unsent) else {})
