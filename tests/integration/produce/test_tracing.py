"""Traces: a message bears the one that it was written in, and its delivery is linked to all that it stands for."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import pytest
from opentelemetry import trace
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import StatusCode

from outboxd import tracing
from outboxd.producer import NewMessage
from tests.drains import Recorder, drain_once, failing, failures, remaining, write
from tests.produce import producing

if TYPE_CHECKING:
    from collections.abc import Iterator

    import asyncpg
    from opentelemetry.sdk.trace import ReadableSpan

    from outboxd import Message


@pytest.fixture
def spans(monkeypatch: pytest.MonkeyPatch) -> Iterator[InMemorySpanExporter]:
    """What was exported; the provider is this test's only."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    yield exporter
    provider.shutdown()


def deliveries(spans: InMemorySpanExporter) -> list[ReadableSpan]:
    return [span for span in spans.get_finished_spans() if span.name.startswith("process ")]


async def save(database: str, connection: asyncpg.Connection, *objects: int, **more: object) -> None:
    messages = [
        NewMessage(category="MEMBER", shard_identifier=1, object_identifier=each, headers=more or None)
        for each in objects
    ]
    async with producing(database) as producer, producer.context(connection) as outbox:
        await outbox.save_many(messages)


async def test_a_message_bears_its_trace(
    database: str, connection: asyncpg.Connection, spans: InMemorySpanExporter
) -> None:
    tracer = trace.get_tracer_provider().get_tracer("test")
    with tracer.start_as_current_span("request") as request:
        await save(database, connection, 1)
        await save(database, connection, 2, tenant="x")
        await save(database, connection, 3, traceparent="mine")

    first, second, third = [
        json.loads(row[0]) for row in await connection.fetch("SELECT headers FROM outbox ORDER BY id")
    ]
    trace_id = format(request.get_span_context().trace_id, "032x")
    assert first["traceparent"].split("-")[1] == trace_id
    assert (second["tenant"], second["traceparent"].split("-")[1]) == ("x", trace_id)
    assert third == {"traceparent": "mine"}


async def test_without_a_trace_there_are_no_headers(
    database: str, connection: asyncpg.Connection, spans: InMemorySpanExporter
) -> None:
    await save(database, connection, 1)
    assert await connection.fetchval("SELECT headers FROM outbox") is None


async def test_a_delivery_is_linked_to_every_trace_that_it_stands_for(
    database: str, connection: asyncpg.Connection, spans: InMemorySpanExporter
) -> None:
    tracer = trace.get_tracer_provider().get_tracer("test")
    written = []
    for _ in range(3):
        with tracer.start_as_current_span("request") as request:
            await save(database, connection, 1)
            written.append(request.get_span_context().trace_id)
    await write(connection, obj=1)
    inside: list[int] = []

    def receive(_: Message) -> None:
        inside.append(trace.get_current_span().get_span_context().span_id)

    await drain_once(database, Recorder(receive))

    [span] = deliveries(spans)
    assert [link.context.trace_id for link in span.links] == written
    assert span.context is not None
    assert inside == [span.context.span_id]
    assert span.context.trace_id not in written
    assert span.status.status_code is StatusCode.UNSET
    assert span.attributes is not None
    assert span.attributes["messaging.batch.message_count"] == 4
    assert span.attributes["outbox.category"] == "MEMBER"


async def test_a_failure_is_one_of_the_span(
    database: str, connection: asyncpg.Connection, spans: InMemorySpanExporter
) -> None:
    await write(connection)
    await drain_once(database, Recorder(failing()))

    [span] = deliveries(spans)
    assert (span.status.status_code, span.status.description) == (
        StatusCode.ERROR,
        "tests.drains.Recorder raised ValueError: object 1 is broken",
    )
    assert [event.name for event in span.events] == ["exception"]


@pytest.mark.parametrize(
    "headers",
    ['{"n": ' + "9" * 5000 + "}", "[1]", '"x"', '{"traceparent": 1}', '{"traceparent": "00-zz"}', "{}"],
)
async def test_headers_of_others_are_no_trouble(
    database: str, connection: asyncpg.Connection, spans: InMemorySpanExporter, headers: str
) -> None:
    await write(connection)
    await connection.execute("UPDATE outbox SET headers = $1", headers)
    await write(connection)
    seen = Recorder()
    await drain_once(database, seen)

    assert len(seen.messages) == 1
    assert [span.links for span in deliveries(spans)] == [()]


@pytest.mark.parametrize("state", ["5", "true", '["a", 2]', '{"a": 1}', "null"])
async def test_a_strange_tracestate_leaves_the_traceparent_a_link(
    database: str, connection: asyncpg.Connection, spans: InMemorySpanExporter, state: str
) -> None:
    trace_id = "0af7651916cd43dd8448eb211c80319c"
    await write(connection)
    text = f'{{"traceparent": "00-{trace_id}-b7ad6b7169203331-01", "tracestate": {state}}}'
    await connection.execute("UPDATE outbox SET headers = $1", text)
    seen = Recorder()
    await drain_once(database, seen)

    assert len(seen.messages) == 1
    assert [[format(link.context.trace_id, "032x") for link in span.links] for span in deliveries(spans)] == [
        [trace_id]
    ]


class UnspeakableError(Exception):
    def __str__(self) -> str:
        raise RuntimeError("no words")


async def test_an_exception_that_cannot_be_recorded_is_a_failure_all_the_same(
    database: str, connection: asyncpg.Connection, spans: InMemorySpanExporter
) -> None:
    await write(connection)
    await drain_once(database, Recorder(failing(error=UnspeakableError())))
    assert len(await failures(connection)) == 1


@pytest.mark.parametrize("moment", ["on_start", "on_end"])
async def test_a_processor_that_raises_does_not_touch_the_delivery(
    database: str, connection: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch, moment: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("the collector is away")

    processor = SpanProcessor()
    monkeypatch.setattr(processor, moment, fail)
    provider = TracerProvider()
    provider.add_span_processor(processor)
    monkeypatch.setattr(trace, "get_tracer_provider", lambda: provider)
    await write(connection)
    seen = Recorder()
    await drain_once(database, seen)

    assert len(seen.messages) == 1
    assert await remaining(connection) == []


async def test_a_flush_is_traced_too(
    database: str, connection: asyncpg.Connection, spans: InMemorySpanExporter
) -> None:
    tracer = trace.get_tracer_provider().get_tracer("test")
    async with producing(database, Recorder()) as producer:
        with tracer.start_as_current_span("request") as request:
            async with producer.context(connection, flush=True) as outbox:
                await outbox.save("MEMBER", shard_identifier=1, object_identifier=1)

    [span] = deliveries(spans)
    assert [link.context.trace_id for link in span.links] == [request.get_span_context().trace_id]
    assert span.parent is None


def test_where_nobody_has_set_it_up_nothing_is_traced() -> None:
    assert tracing.tracer() is None
    assert tracing.headers() == {}
