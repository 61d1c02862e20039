"""
Traces, where OpenTelemetry is installed: a message bears the trace that it was written in, and its delivery is linked.

A delivery is no child of the transaction that wrote the message: it comes later, may come again, and may stand for many
messages of many traces. So it is a span of its own, with a link to each of them.
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Tracer

    from outboxd.model import Message, Outcome

LINKS_MAX = 128
"""As many as the SDK keeps of a span by default."""


def headers() -> dict[str, str]:
    """Return `traceparent` and `tracestate` of the current span; nothing where there is none."""
    carrier: dict[str, str] = {}
    with contextlib.suppress(ImportError):
        from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

        TraceContextTextMapPropagator().inject(carrier)
    return carrier


def tracer() -> Tracer | None:
    """Return what makes spans, where somebody has set OpenTelemetry up; None: nobody would see them."""
    try:
        from opentelemetry import trace
    except ImportError:
        return None
    provider = trace.get_tracer_provider()
    if isinstance(provider, (trace.ProxyTracerProvider, trace.NoOpTracerProvider)):
        return None
    return provider.get_tracer("outboxd")


def links_of(texts: Iterable[str]) -> list[Link]:
    """Return a link to each trace that headers (JSON texts) name; those that name none are passed over."""
    from opentelemetry import trace
    from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

    found: dict[tuple[int, int], Link] = {}
    for text in texts:
        try:
            carrier = json.loads(text)
        except (ValueError, RecursionError):  # jsonb holds numbers and depths that Python does not
            continue
        if not isinstance(carrier, dict) or not isinstance(carrier.get("traceparent"), str):
            continue
        context = TraceContextTextMapPropagator().extract(carrier)
        span = trace.get_current_span(context).get_span_context()
        if span.is_valid and len(found) < LINKS_MAX:
            found.setdefault((span.trace_id, span.span_id), trace.Link(span))
    return list(found.values())


@contextlib.contextmanager
def delivery(tracer_: Tracer, message: Message, texts: Iterable[str]) -> Iterator[Any]:
    """Make the span of a delivery the current one; yields what takes its outcome."""
    from opentelemetry.trace import SpanKind, Status, StatusCode

    attributes: dict[str, str | int] = {
        "messaging.system": "outboxd",
        "messaging.operation.type": "process",
        "messaging.destination.name": message.outbox,
        "messaging.message.id": str(message.id),
        "messaging.batch.message_count": message.coalesced,
        "outbox.category": message.category_name,
        "outbox.shard_scope": message.scope_name,
        "outbox.shard_identifier": str(message.shard_identifier),
        "outbox.object_identifier": str(message.object_identifier),
        "outbox.attempt": message.attempt,
    }
    name = f"process {message.category_name}"
    with tracer_.start_as_current_span(
        name, kind=SpanKind.CONSUMER, links=links_of(texts), attributes=attributes, record_exception=False
    ) as span:

        def end(outcome: Outcome) -> None:
            if outcome is None:
                return
            text = getattr(outcome, "error", "") or getattr(outcome, "reason", "")
            span.set_status(Status(StatusCode.ERROR, text))
            if (exception := getattr(outcome, "exception", None)) is not None:
                span.record_exception(exception)

        yield end
