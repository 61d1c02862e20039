"""The dashboard and the alert rules in deploy/: expressions that parse, and only metrics and labels that exist."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import promql_parser as promql
import pytest
import yaml

from outboxd.config import DoctorConfig
from tests import emitted
from tests.unit.test_operations_docs import WORDS, rows

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).parent.parent.parent
DASHBOARD: dict[str, Any] = json.loads((ROOT / "deploy" / "grafana" / "outboxd.json").read_text("utf-8"))
RULES: dict[str, Any] = yaml.safe_load((ROOT / "deploy" / "prometheus" / "outboxd.rules.yml").read_text("utf-8"))
ALERTS: list[dict[str, Any]] = [rule for group in RULES["groups"] for rule in group["rules"]]
RUNBOOK = (ROOT / "docs" / "runbook.md").read_text("utf-8")

TARGET = frozenset({"job", "instance"})
"""Labels that Prometheus gives to whatever it scrapes."""
METRICS = {
    "up": TARGET,
    **{name: TARGET | set(metric.labels) for name, metric in (emitted.of_outboxd() | emitted.of_process()).items()},
}
METRICS |= {
    f"{name}{part}": METRICS[name] | ({"le"} if part == "_bucket" else set())
    for name, metric in emitted.of_outboxd().items()
    if metric.kind == "histogram"
    for part in ("_bucket", "_sum", "_count")
}
TEMPLATED = re.compile(r"\{\{ *(\$value|\$labels\.(\w+))[^}]*\}\}")

every_alert = pytest.mark.parametrize("alert", ALERTS, ids=lambda alert: str(alert["alert"]))


def labels_of(expression: Any) -> frozenset[str]:
    """The labels that results of an expression bear; fails where it asks for a metric or a label that is not there."""
    match expression:
        case promql.VectorSelector():
            assert expression.name in METRICS, f"there is no metric {expression.name}"
            known = METRICS[expression.name]
            assert {matcher.name for matcher in expression.matchers.matchers} <= known, str(expression)
            return frozenset(known)
        case promql.MatrixSelector():
            return labels_of(expression.vector_selector)
        case promql.ParenExpr():
            return labels_of(expression.expr)
        case promql.AggregateExpr():
            return _aggregated(expression)
        case promql.BinaryExpr():
            return _combined(expression)
        case promql.Call():
            return _called(expression)
        case promql.NumberLiteral():
            return frozenset()
    raise AssertionError(f"what is {expression!r}?")


def _called(call: promql.Call) -> frozenset[str]:
    found = frozenset[str]().union(*(labels_of(argument) for argument in call.args))
    if call.func.name == "absent":
        return frozenset()
    if call.func.name == "histogram_quantile":
        assert "le" in found, call.prettify()
        return found - {"le"}
    return found


def _aggregated(expression: promql.AggregateExpr) -> frozenset[str]:
    inner = labels_of(expression.expr)
    assert expression.modifier is not None, f"without by: {expression.prettify()}"
    assert expression.modifier.type == promql.AggModifierType.By
    named = frozenset(expression.modifier.labels)
    assert named <= inner, f"{set(named - inner)} in {expression.prettify()}"
    return named


def _combined(expression: promql.BinaryExpr) -> frozenset[str]:
    """Of two vectors, those of the left one; both must bear what they are matched on, or be alike."""
    left, right = labels_of(expression.lhs), labels_of(expression.rhs)
    if not left or not right:
        return left | right
    matching = expression.modifier.matching if expression.modifier is not None else None
    if matching is None:
        assert left == right, expression.prettify()
    else:
        assert set(matching.labels) <= left & right, expression.prettify()
    return left


def panels() -> Iterator[dict[str, Any]]:
    for panel in DASHBOARD["panels"]:
        yield panel
        yield from panel.get("panels", [])


def targets() -> list[Any]:
    return [
        pytest.param(target, id=f"{panel['title']} {target['refId']}")
        for panel in panels()
        for target in panel.get("targets", [])
    ]


# --- the rules themselves are tried: what is wrong must be found ----------------------------------------------------


@pytest.mark.parametrize(
    "expression",
    [
        "outboxd_no_such_thing",
        'outboxd_ready{outbox="main"}',
        "max by (outbox) (outboxd_ready)",
        "max(outboxd_ready)",
        "sum by (job) (outboxd_ready) > sum by (outbox) (rate(outboxd_claims_total[5m]))",
        "histogram_quantile(0.9, sum by (outbox) (rate(outbox_processing_lag_seconds_bucket[5m])))",
        "outbox_processed",
    ],
)
def test_what_is_not_there_is_found(expression: str) -> None:
    with pytest.raises(AssertionError):
        labels_of(promql.parse(expression))


# --- alerts --------------------------------------------------------------------------------------------------


def test_the_rules_have_the_structure_that_prometheus_reads() -> None:
    assert set(RULES) == {"groups"}
    names = [group["name"] for group in RULES["groups"]]
    assert len(names) == len(set(names))
    assert all(set(group) == {"name", "rules"} and group["rules"] for group in RULES["groups"])
    alerts = [alert["alert"] for alert in ALERTS]
    assert len(alerts) == len(set(alerts))


@every_alert
def test_an_alert_is_complete(alert: dict[str, Any]) -> None:
    assert set(alert) - {"for"} == {"alert", "expr", "labels", "annotations"}
    assert re.fullmatch(r"Outboxd[A-Z]\w+", alert["alert"])
    if "for" in alert:
        assert promql.parse_duration(alert["for"]).total_seconds() > 0
    assert alert["labels"] in ({"severity": "critical"}, {"severity": "warning"})
    assert set(alert["annotations"]) == {"summary", "description", "runbook"}


@every_alert
def test_an_alert_asks_for_what_there_is_and_names_only_labels_that_it_has(alert: dict[str, Any]) -> None:
    labels = labels_of(promql.parse(alert["expr"]))

    for text in alert["annotations"].values():
        named = {match[2] for match in TEMPLATED.finditer(text)} - {None}
        assert named <= labels, f"{alert['alert']}: {text}"
        assert "{{" not in TEMPLATED.sub("", text)


@every_alert
def test_an_alert_says_what_to_type_next(alert: dict[str, Any]) -> None:
    assert "`" in alert["annotations"]["description"]


@every_alert
def test_an_alert_has_a_place_in_the_runbook(alert: dict[str, Any]) -> None:
    assert alert["annotations"]["runbook"] == f"docs/runbook.md#{alert['alert'].lower()}"
    assert f"\n### {alert['alert']}\n" in RUNBOOK


def test_the_runbook_has_no_alert_that_is_gone() -> None:
    assert re.findall(r"^### (Outboxd\w+)$", RUNBOOK, re.MULTILINE) == [alert["alert"] for alert in ALERTS]


def test_the_lag_that_alerts_is_that_of_the_doctor() -> None:
    [alert] = [alert for alert in ALERTS if alert["alert"] == "OutboxdLagAboveSlo"]
    assert alert["expr"].endswith(f"> {DoctorConfig().lag_slo_s:g}")


# --- dashboard -----------------------------------------------------------------------------------------------


def test_the_dashboard_can_be_imported_anywhere() -> None:
    """No database id, no data source of somebody's own, and a data source to choose."""
    assert DASHBOARD["id"] is None
    assert DASHBOARD["schemaVersion"] >= 39
    assert [v["name"] for v in DASHBOARD["templating"]["list"] if v["type"] == "datasource"] == ["datasource"]
    sources = re.findall(r'"uid": *"([^"]+)"', json.dumps(DASHBOARD["panels"]) + json.dumps(DASHBOARD["templating"]))
    assert set(sources) == {"${datasource}"}


def test_panels_have_a_title_and_a_text_and_an_id_of_their_own() -> None:
    ids = [panel["id"] for panel in panels()]
    assert len(ids) == len(set(ids))
    for panel in panels():
        assert panel["title"]
        assert panel["type"] == "row" or (panel["description"] and panel["targets"]), panel["title"]


def test_panels_do_not_lie_on_each_other() -> None:
    taken: dict[tuple[int, int], str] = {}
    for panel in panels():
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        for cell in ((x, y) for x in range(at["x"], at["x"] + at["w"]) for y in range(at["y"], at["y"] + at["h"])):
            assert cell not in taken, f"{panel['title']} lies on {taken[cell]}"
            taken[cell] = panel["title"]


@pytest.mark.parametrize("target", targets())
def test_a_panel_asks_for_what_there_is_and_its_legend_names_only_labels_that_it_has(target: dict[str, Any]) -> None:
    labels = labels_of(promql.parse(target["expr"].replace("$__rate_interval", "5m")))

    assert set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"])) <= labels
    variables = {variable["name"] for variable in DASHBOARD["templating"]["list"]} | {"__rate_interval"}
    assert set(re.findall(r"\$(\w+)", target["expr"])) <= variables


def test_variables_ask_for_labels_that_there_are() -> None:
    queries = [v["query"]["query"] for v in DASHBOARD["templating"]["list"] if v["type"] == "query"]
    assert queries
    for query in queries:
        asked = re.fullmatch(r"label_values\((.+), (\w+)\)", query)
        assert asked is not None, query
        assert asked[2] in labels_of(promql.parse(asked[1]))


def test_gauges_that_every_replica_exports_are_never_summed() -> None:
    database = {WORDS.findall(row[0])[0] for row in rows("metric") if row[3] == "database"}
    assert database
    expressions = [alert["expr"] for alert in ALERTS]
    expressions += [target["expr"] for panel in panels() for target in panel.get("targets", [])]

    for expression in expressions:
        assert _summed(promql.parse(expression.replace("$__rate_interval", "5m"))).isdisjoint(database), expression


def _summed(expression: Any) -> set[str]:
    """The metrics inside sums."""
    found: set[str] = set()

    def inside(node: Any) -> None:
        if isinstance(node, promql.MatrixSelector):
            node = node.vector_selector
        if isinstance(node, promql.VectorSelector):
            found.add(str(node.name))

    def look(node: Any) -> None:
        if isinstance(node, promql.AggregateExpr) and node.prettify().startswith("sum"):
            promql.walk(node, inside)

    promql.walk(expression, look)
    return found
