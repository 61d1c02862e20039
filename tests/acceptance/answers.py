"""What a running daemon answers over HTTP, asked for and read."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING

import aiohttp
from prometheus_client.parser import text_string_to_metric_families as parse

from tests.eventually import eventually

if TYPE_CHECKING:
    from collections.abc import Iterable

    from prometheus_client.metrics_core import Metric

    from tests.processes import Outboxd


@dataclass
class Answer:
    status: int
    content_type: str
    text: str


async def address_of(daemon: Outboxd) -> str:
    event = await daemon.wait_for_event("http.listening")
    address: str = event["addresses"][0]
    return address


async def ask(address: str, path: str, accept: str = "") -> Answer:
    headers = {"Accept": accept} if accept else {}
    async with aiohttp.ClientSession() as session, session.get(f"http://{address}{path}", headers=headers) as response:
        return Answer(response.status, response.headers["Content-Type"], await response.text())


async def reasons(address: str) -> list[str]:
    """Why it is not ready; empty when it is."""
    answer = await ask(address, "/readyz")
    document = json.loads(answer.text)
    found: list[str] = document["reasons"]
    assert (answer.status, document["ready"]) == ((503, False) if found else (200, True))
    return found


async def ready(address: str) -> None:
    """Wait until it is."""

    async def is_ready() -> bool:
        return await reasons(address) == []

    await eventually(is_ready)


Samples = dict[tuple[str, frozenset[tuple[str, str]]], float]


def samples_of(families: Iterable[Metric]) -> Samples:
    return {(one.name, frozenset(one.labels.items())): one.value for family in families for one in family.samples}


async def scrape(address: str) -> Samples:
    answer = await ask(address, "/metrics")
    assert (answer.status, answer.content_type.partition(";")[0]) == (200, "text/plain")
    return samples_of(parse(answer.text))


def value(samples: Samples, name: str, **labels: str) -> float | None:
    return samples.get((name, frozenset(labels.items())))


def labels_of(samples: Samples, name: str, label: str) -> set[str]:
    return {dict(labels)[label] for key, labels in samples if key == name}
