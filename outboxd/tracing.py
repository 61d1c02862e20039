"""
Traces, where OpenTelemetry is installed: a message bears the trace that it was written in, and its delivery is linked.

A delivery is no child of the transaction that wrote the message: it comes later, may come again, and may stand for many
messages of many traces. So it is a span of its own, with a link to each of them.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Callable, Iterable, Iterator
from typing import TYPE_CHECKING

import structlog

if TYPE_CHECKING:
    from opentelemetry.trace import Link, Span, Tracer

    from outboxd.model import Message, Outcome

log = structlog.get_logger()
_NAMES = ("traceparent", "tracestate")
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
            headers_ = json.loads(text)
        except (ValueError, RecursionError):  # jsonb holds numbers and depths that Python does not
            continue
        carrier = {name: headers_.get(name) for name in _NAMES} if isinstance(headers_, dict) else {}
        context = TraceContextTextMapPropagator().extract({k: v for k, v in carrier.items() if isinstance(v, str)})
        span = trace.get_current_span(context).get_span_context()
        if span.is_valid and len(found) < LINKS_MAX:
            found.setdefault((span.trace_id, span.span_id), trace.Link(span))
    return list(found.values())


@contextlib.contextmanager
def delivery(tracer_: Tracer, message: Message, texts: Iterable[str]) -> Iterator[Callable[[Outcome], None]]:
    """
    Make the span of a delivery the current one; yields what takes its outcome.

    Whatever goes wrong with the span (a processor may raise) is logged: the delivery has its own outcome.
    """
    with contextlib.ExitStack() as ending:
        span: Span | None = None
        with _unharmed():
            span = ending.enter_context(_span(tracer_, message, texts))
        try:
            yield functools.partial(_tell, span)
        finally:
            with _unharmed():
                ending.close()


@contextlib.contextmanager
def _unharmed() -> Iterator[None]:
    try:
        yield
    except Exception:
        log.exception("trace.failed")


def _span(tracer_: Tracer, message: Message, texts: Iterable[str]) -> contextlib.AbstractContextManager[Span]:
    from opentelemetry import context
    from opentelemetry.trace import SpanKind

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
    return tracer_.start_as_current_span(
        f"process {message.category_name}",
        context=context.Context(),  # a root, also where a flush runs inside a span of the application's
        kind=SpanKind.CONSUMER,
        links=links_of(texts),
        attributes=attributes,
        record_exception=False,
    )


def _tell(span: Span | None, outcome: Outcome) -> None:
    if span is None or outcome is None:
        return
    from opentelemetry.trace import Status, StatusCode

    text = getattr(outcome, "error", "") or getattr(outcome, "reason", "")
    with _unharmed():
        span.set_status(Status(StatusCode.ERROR, text))
        if (exception := getattr(outcome, "exception", None)) is not None:
            span.record_exception(exception)
