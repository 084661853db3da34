"""Makes the Grafana dashboard: `python docs/grafana/dashboard.py` writes elasticps.json beside it.

The panels are the table below; Grafana's many words around them are made here.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OUT = Path(__file__).with_name("elasticps.json")
WIDTH, HEIGHT = 8, 7
SOURCE = {"type": "prometheus", "uid": "${datasource}"}
OF = 'cluster=~"$cluster",job_name=~"$job"'
NODE = 'cluster=~"$cluster",instance=~"$instance"'
BOTH = f'{NODE},job_name=~"$job"'


@dataclass(frozen=True, slots=True, kw_only=True)
class Panel:
    """One panel; ``queries`` are pairs of an expression and its legend."""

    title: str
    queries: tuple[tuple[str, str], ...]
    unit: str = "short"
    kind: str = "timeseries"
    tells: str = ""


def rate(metric: str, by: str, selector: str = BOTH) -> str:
    return f"sum by ({by}) (rate(elasticps_{metric}{{{selector}}}[$__rate_interval]))"


def quantile(share: float, metric: str, by: str, selector: str) -> str:
    buckets = f"rate(elasticps_{metric}_bucket{{{selector}}}[$__rate_interval])"
    return f"histogram_quantile({share}, sum by (le, {by}) ({buckets}))"


def ratio(metric: str, to: str, by: str, selector: str = BOTH) -> str:
    return f"{rate(metric, by, selector)} / {rate(to, by, selector)}"


def mean(metric: str, by: str, selector: str) -> str:
    return ratio(f"{metric}_sum", f"{metric}_count", by, selector)


def increase(metric: str, by: str) -> str:
    return f"sum by ({by}) (increase(elasticps_{metric}{{{NODE}}}[5m]))"


ROWS: dict[str, tuple[Panel, ...]] = {
    "Cluster": (
        Panel(
            title="Leader",
            kind="stat",
            queries=((f"elasticps_leader{{{NODE}}} == 1", "{{instance}}"),),
            tells="Which daemon leads. None: nothing is planned and no failover is made.",
        ),
        Panel(
            title="Nodes",
            kind="stat",
            queries=(
                (f"max(elasticps_nodes{{{NODE}}})", "registered"),
                (f"sum(elasticps_ready{{{NODE}}})", "ready"),
            ),
        ),
        Panel(
            title="Jobs by state",
            kind="stat",
            queries=((f"sum by (state) (elasticps_job_state{{{OF}}})", "{{state}}"),),
        ),
        Panel(
            title="Under-replicated and moving blocks",
            queries=(
                (
                    f"sum by (job_name) (elasticps_under_replicated_blocks{{{OF}}})",
                    "{{job_name}} short",
                ),
                (f"sum by (job_name) (elasticps_moving_blocks{{{OF}}})", "{{job_name}} moving"),
            ),
            tells="Short of replicas: one more death may lose them.",
        ),
        Panel(
            title="Failovers",
            queries=(
                (
                    f"sum by (cause) (increase(elasticps_failovers_total{{{NODE}}}[5m]))",
                    "{{cause}}",
                ),
            ),
        ),
        Panel(
            title="Failover: mean time to detect, promote, heal",
            unit="s",
            queries=(
                (mean("failover_detect_seconds", "cause", NODE), "{{cause}} detect"),
                (mean("failover_promote_seconds", "cause", NODE), "{{cause}} promote"),
                (mean("failover_heal_seconds", "cause", NODE), "{{cause}} heal"),
            ),
        ),
    ),
    "Training": (
        Panel(
            title="Rounds",
            unit="ops",
            queries=((rate("rounds_total", "job_name"), "{{job_name}}"),),
        ),
        Panel(
            title="Workers",
            queries=((f"sum by (job_name) (elasticps_workers{{{BOTH}}})", "{{job_name}}"),),
        ),
        Panel(
            title="Slowest step",
            unit="s",
            queries=(
                (f"max by (job_name) (elasticps_worker_step_seconds{{{BOTH}}})", "{{job_name}}"),
            ),
        ),
        Panel(
            title="Pushes and pulls",
            unit="ops",
            queries=(
                (rate("pushes_total", "job_name"), "{{job_name}} pushes"),
                (rate("pulls_total", "job_name"), "{{job_name}} pulls"),
            ),
        ),
        Panel(
            title="Bytes pushed and pulled",
            unit="Bps",
            queries=(
                (rate("pushed_bytes_total", "job_name"), "{{job_name}} pushed"),
                (rate("pulled_bytes_total", "job_name"), "{{job_name}} pulled"),
            ),
        ),
        Panel(
            title="Bytes from worker to worker",
            unit="Bps",
            queries=(
                (
                    rate("worker_peer_sent_bytes_total", "job_name, transport"),
                    "{{job_name}} sent, {{transport}}",
                ),
                (
                    rate("worker_peer_received_bytes_total", "job_name, transport"),
                    "{{job_name}} received, {{transport}}",
                ),
            ),
        ),
        Panel(
            title="What the codec leaves",
            unit="percentunit",
            queries=(
                (
                    ratio("worker_pushed_bytes_total", "worker_gradient_bytes_total", "job_name"),
                    "{{job_name}}",
                ),
            ),
            tells="Bytes sent for gradients, as a share of the gradients' own size.",
        ),
        Panel(
            title="Staleness",
            queries=(
                (f"max by (job_name) (elasticps_staleness_rounds{{{BOTH}}})", "{{job_name}}"),
            ),
            tells="Rounds that the slowest worker is behind the fastest.",
        ),
        Panel(
            title="Lost work and what is wrong",
            unit="ops",
            queries=(
                (rate("discarded_gradients_total", "job_name"), "{{job_name}} gradients discarded"),
                (rate("nonfinite_gradients_total", "job_name"), "{{job_name}} inf or NaN seen"),
                (f"sum by (job_name) (elasticps_lost_pushes{{{OF}}})", "{{job_name}} pushes lost"),
            ),
        ),
        Panel(
            title="Pushes that were not taken",
            unit="ops",
            queries=((rate("refused_pushes_total", "reason", NODE), "{{reason}}"),),
        ),
    ),
    "Shard servers": (
        Panel(
            title="Bytes in, by transport",
            unit="Bps",
            queries=((rate("received_bytes_total", "transport", NODE), "{{transport}}"),),
        ),
        Panel(
            title="Bytes out, by transport",
            unit="Bps",
            queries=((rate("sent_bytes_total", "transport", NODE), "{{transport}}"),),
        ),
        Panel(
            title="Share of the time that goes into optimizer steps",
            unit="percentunit",
            queries=((rate("apply_seconds_sum", "instance"), "{{instance}}"),),
            tells="1 is all of a shard server's one thread.",
        ),
        Panel(
            title="Mean optimizer step on a block",
            unit="s",
            queries=((mean("apply_seconds", "job_name", BOTH), "{{job_name}}"),),
        ),
        Panel(
            title="Replicas by role",
            queries=(
                (f"sum by (instance, role) (elasticps_blocks{{{BOTH}}})", "{{instance}} {{role}}"),
            ),
        ),
        Panel(
            title="Memory of the replicas",
            unit="bytes",
            queries=((f"sum by (instance) (elasticps_held_bytes{{{BOTH}}})", "{{instance}}"),),
        ),
        Panel(
            title="Replication lag",
            unit="s",
            queries=(
                (
                    f"max by (job_name) (elasticps_replication_lag_seconds{{{BOTH}}})",
                    "{{job_name}}",
                ),
                (
                    f"max by (job_name) (elasticps_replication_lag_ops{{{BOTH}}})",
                    "{{job_name}} ops",
                ),
            ),
        ),
        Panel(
            title="Replicated and migrated bytes",
            unit="Bps",
            queries=(
                (rate("replicated_bytes_total", "job_name"), "{{job_name}} ops"),
                (rate("migration_bytes_total", "job_name"), "{{job_name}} snapshots"),
            ),
        ),
        Panel(
            title="Shard servers that came up",
            queries=((increase("shard_server_starts_total", "instance"), "{{instance}}"),),
        ),
    ),
    "Daemons": (
        Panel(
            title="Longest loop lag of the last minute",
            unit="s",
            queries=(
                (f"elasticps_loop_lag_max_seconds{{{NODE}}}", "{{instance}} daemon"),
                (f"elasticps_shard_server_loop_lag_seconds{{{NODE}}}", "{{instance}} server"),
            ),
            tells="A daemon that is late by the lease's time to live loses its node.",
        ),
        Panel(
            title="Loop lag, 99 %",
            unit="s",
            queries=((quantile(0.99, "loop_lag_seconds", "instance", NODE), "{{instance}}"),),
        ),
        Panel(
            title="etcd's answers, 99 %",
            unit="s",
            queries=((quantile(0.99, "etcd_request_seconds", "instance", NODE), "{{instance}}"),),
        ),
        Panel(
            title="etcd: failed requests",
            unit="ops",
            queries=((rate("etcd_failures_total", "instance", NODE), "{{instance}}"),),
        ),
        Panel(
            title="Time since etcd answered",
            unit="s",
            queries=((f"elasticps_etcd_silence_seconds{{{NODE}}}", "{{instance}}"),),
        ),
        Panel(
            title="Daemon: memory",
            unit="bytes",
            queries=((f"process_resident_memory_bytes{{{NODE}}}", "{{instance}}"),),
        ),
    ),
}


def dashboard() -> dict[str, Any]:
    panels: list[dict[str, Any]] = []
    top = 0
    for row, members in ROWS.items():
        panels.append(
            {
                "id": len(panels) + 1,
                "type": "row",
                "title": row,
                "collapsed": False,
                "panels": [],
                "gridPos": {"x": 0, "y": top, "w": 24, "h": 1},
            }
        )
        top += 1
        for index, panel in enumerate(members):
            place = {
                "x": index % 3 * WIDTH,
                "y": top + index // 3 * HEIGHT,
                "w": WIDTH,
                "h": HEIGHT,
            }
            panels.append(_panel(panel, len(panels) + 1, place))
        top += -(-len(members) // 3) * HEIGHT
    return {
        "uid": "elasticps",
        "title": "elasticps",
        "tags": ["elasticps", "pytorch"],
        "schemaVersion": 38,
        "version": 1,
        "editable": True,
        "time": {"from": "now-1h", "to": "now"},
        "refresh": "10s",
        "templating": {"list": _variables()},
        "annotations": {"list": [_failovers()]},
        "panels": panels,
    }


def _panel(panel: Panel, number: int, place: dict[str, int]) -> dict[str, Any]:
    targets = [
        {"refId": chr(ord("A") + index), "datasource": SOURCE, "expr": expr, "legendFormat": legend}
        for index, (expr, legend) in enumerate(panel.queries)
    ]
    if panel.kind == "stat":
        targets = [{**target, "instant": True} for target in targets]
    return {
        "id": number,
        "type": panel.kind,
        "title": panel.title,
        "description": panel.tells,
        "datasource": SOURCE,
        "gridPos": place,
        "fieldConfig": {"defaults": {"unit": panel.unit, "min": 0}, "overrides": []},
        "options": {"textMode": "value_and_name"} if panel.kind == "stat" else {},
        "targets": targets,
    }


def _variables() -> list[dict[str, Any]]:
    chosen = {"datasource": {"name": "datasource", "type": "datasource", "query": "prometheus"}}
    for name, label, query in (
        ("cluster", "cluster", "label_values(elasticps_build_info, cluster)"),
        ("instance", "node", 'label_values(elasticps_build_info{cluster=~"$cluster"}, instance)'),
        ("job", "job", 'label_values(elasticps_pushes_total{cluster=~"$cluster"}, job_name)'),
    ):
        chosen[name] = {
            "name": name,
            "label": label,
            "type": "query",
            "datasource": SOURCE,
            "query": query,
            "refresh": 2,
            "includeAll": True,
            "allValue": ".*",
            "multi": True,
            "current": {"text": "All", "value": "$__all"},
        }
    return list(chosen.values())


def _failovers() -> dict[str, Any]:
    return {
        "name": "failovers",
        "datasource": SOURCE,
        "enable": True,
        "iconColor": "red",
        "expr": f"sum by (cause) (increase(elasticps_failovers_total{{{NODE}}}[1m])) > 0",
        "titleFormat": "failover",
        "textFormat": "{{cause}}",
    }


if __name__ == "__main__":
    OUT.write_text(json.dumps(dashboard(), indent=2) + "\n")
