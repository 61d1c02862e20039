"""The table of metrics in docs/operations.md says what the collector exposes, and the collector what the table says."""

from __future__ import annotations

import re

from tests import emitted
from tests.unit.test_operations_docs import WORDS, rows

TABLE = list(rows("metric"))
OUTBOXD = emitted.of_outboxd()


def test_every_metric_is_in_the_table_with_its_type_and_labels_and_no_other() -> None:
    documented = {WORDS.findall(name)[0]: (kind, tuple(WORDS.findall(labels))) for name, kind, labels, *_ in TABLE}

    assert documented == {metric.name: (metric.kind, metric.labels) for metric in OUTBOXD.values()}
    assert len(documented) == len(TABLE)


def test_the_table_is_in_the_order_of_the_page() -> None:
    assert [WORDS.findall(row[0])[0] for row in TABLE] == list(OUTBOXD)


def test_what_is_counted_is_of_a_process_and_the_rest_says_of_what_it_is() -> None:
    for name, kind, _, whose, meaning in TABLE:
        assert whose in (("process",) if kind != "gauge" else ("process", "database")), name
        assert meaning, name


def test_names_say_what_they_are() -> None:
    """Counters end in _total, what is measured in seconds or bytes ends so, and every metric has a sentence."""
    for metric in OUTBOXD.values():
        assert re.fullmatch(r"(outboxd?|schedule_batch|backfill_outboxes)_[a-z_]+", metric.name)
        assert metric.name.endswith("_total") == (metric.kind == "counter"), metric.name
        assert metric.text.endswith("."), metric.name


def test_no_label_can_take_the_value_of_a_shard_or_an_object() -> None:
    labels = {label for metric in OUTBOXD.values() for label in metric.labels}

    assert labels == {"outbox", "category", "synchronous", "kind", "table", "version", "python", "session"}
