"""What `outbox_context` uses where nobody has chosen."""

from __future__ import annotations

import concurrent.futures
import threading
from typing import TYPE_CHECKING

from outboxd import producer
from outboxd.config import Config
from outboxd.load import Loaded

if TYPE_CHECKING:
    import pytest


def test_threads_that_are_the_first_to_ask_get_the_same_one(monkeypatch: pytest.MonkeyPatch) -> None:
    loads, together = [], threading.Barrier(8)

    def load() -> producer.Producer:
        loads.append(threading.get_ident())
        return producer.Producer(Loaded(Config()))

    def ask(_: int) -> producer.Producer:
        together.wait()
        return producer.default()

    monkeypatch.setattr(producer.Producer, "load", load)
    monkeypatch.setattr(producer, "_default", None)
    monkeypatch.setattr(producer, "_choose", None)
    with concurrent.futures.ThreadPoolExecutor(8) as threads:
        found = set(threads.map(ask, range(8)))

    assert (len(found), len(loads)) == (1, 1)
