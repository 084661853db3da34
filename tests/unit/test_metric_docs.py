"""The catalogue of metrics keeps Prometheus's rules; page, dashboard and alerts keep to it."""

from __future__ import annotations

import json
import re
import runpy
from pathlib import Path
from typing import Any

import pytest

from elasticps.daemon.metrics.catalogue import CATALOGUE, PREFIX, Kind, Metric

DOCS = Path(__file__).parents[2] / "docs"
PAGE = DOCS / "metrics.md"
BOARD = DOCS / "grafana" / "elasticps.json"
ALERTS = DOCS / "grafana" / "alerts.yml"
FEW_VALUES = {"job_name", "role", "state", "cause", "reason", "transport", "version"}
ENDS = {
    Kind.COUNTER: {""},
    Kind.GAUGE: {""},
    Kind.SUMMARY: {"_sum", "_count"},
    Kind.HISTOGRAM: {"_sum", "_count", "_bucket"},
}


def series() -> set[str]:
    """The names that expressions may use."""
    return {metric.full_name + end for metric in CATALOGUE.values() for end in ENDS[metric.kind]}


def names_in(text: str) -> set[str]:
    return set(re.findall(rf"\b{PREFIX}[a-z0-9_]+", text))


def board() -> dict[str, Any]:
    return dict(json.loads(BOARD.read_text()))


@pytest.mark.parametrize("metric", CATALOGUE.values(), ids=list(CATALOGUE))
def test_metric_is_named_and_told_by_the_rules(metric: Metric) -> None:
    assert re.fullmatch(r"elasticps_[a-z]+(_[a-z]+)*", metric.full_name)
    assert (metric.kind is Kind.COUNTER) == metric.name.endswith("_total")
    assert not metric.name.endswith(("_count", "_sum", "_bucket", "_created", "_ms", "_seconds_s"))
    assert not set(metric.name.split("_")) & {"counter", "gauge", "histogram", "milliseconds", "kb"}
    assert metric.kind in (Kind.COUNTER, Kind.GAUGE) or metric.unit == "seconds"
    assert set(metric.labels) <= FEW_VALUES
    assert not set(metric.labels) & {"job", "instance", "le", "quantile"}  # Prometheus's own
    assert metric.help.endswith(".")
    assert len(metric.help) > 20


def test_page_tells_each_metric_as_it_is_and_no_other() -> None:
    rows = re.findall(r"^\| `(\w+)` \| (\w+) \| (.*?) \| (.*) \|$", PAGE.read_text(), re.MULTILINE)
    told = {
        (name, kind, tuple(re.findall(r"`(\w+)`", labels)), tells)
        for name, kind, labels, tells in rows
    }
    assert len(rows) == len(told)
    assert told == {
        (metric.full_name, metric.kind.value, metric.labels, metric.help)
        for metric in CATALOGUE.values()
    }
    assert names_in(PAGE.read_text()) <= series() | {
        metric.full_name for metric in CATALOGUE.values()
    }


def test_dashboard_is_what_its_script_makes() -> None:
    made = runpy.run_path(str(BOARD.with_name("dashboard.py")))
    assert board() == made["dashboard"](), "run: python docs/grafana/dashboard.py"


def test_dashboard_is_whole() -> None:
    panels = board()["panels"]
    assert len({panel["id"] for panel in panels}) == len(panels)
    variables = {variable["name"]: variable for variable in board()["templating"]["list"]}
    assert variables["datasource"]["type"] == "datasource"
    squares: set[tuple[int, int]] = set()
    for panel in panels:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        own = {
            (place["x"] + right, place["y"] + down)
            for right in range(place["w"])
            for down in range(place["h"])
        }
        assert not own & squares, panel["title"]
        squares |= own
        if panel["type"] != "row":
            assert panel["datasource"]["uid"] == "${datasource}"
            assert panel["targets"], panel["title"]
            assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])
    used = set(re.findall(r"\$\{?(\w+)", BOARD.read_text())) - {"__rate_interval", "__all"}
    assert used == set(variables)


@pytest.mark.parametrize("path", [BOARD, ALERTS], ids=lambda path: path.name)
def test_every_metric_that_is_asked_for_is_exported(path: Path) -> None:
    names = names_in(path.read_text())
    assert names
    assert names <= series()


def test_every_metric_of_training_and_failures_is_on_the_dashboard() -> None:
    shown = {re.sub(r"_(sum|count|bucket)$", "", name) for name in names_in(BOARD.read_text())}
    unseen = {metric.full_name for metric in CATALOGUE.values()} - shown
    assert unseen == {
        "elasticps_certificate_expiry_timestamp_seconds",  # an alert's
        "elasticps_checked_gradients_total",
        "elasticps_has_leader",
        "elasticps_job_blocks",
        "elasticps_job_workers",
        "elasticps_migrations_total",
        "elasticps_replicated_ops_total",
        "elasticps_worker_rounds_total",
    }


def test_alerts_are_whole() -> None:
    text = ALERTS.read_text()
    alerts = re.split(r"^ +- alert: ", text, flags=re.MULTILINE)[1:]
    names = [alert.split()[0] for alert in alerts]
    assert len(set(names)) == len(names)
    for alert in alerts:
        for key in ("expr:", "labels: {severity: ", "summary:", "description:"):
            assert key in alert, alert
    for wanted in ("NoLeader", "BlocksUnderReplicated", "LoopLag", "EtcdSlow", "JobStalled"):
        assert f"Elasticps{wanted}" in names
