"""The figures that ``make bench`` reports, what each should be, and the table of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from benchmarks.report import Table


@dataclass(frozen=True, kw_only=True)
class Goal:
    """``least`` or ``most`` is what is wanted; neither: the figure is told and not judged."""

    key: str
    says: str
    least: float | None = None
    most: float | None = None

    def verdict(self, value: float | None) -> str:
        if value is None:
            return "not measured"
        if self.least is not None:
            return "reached" if value >= self.least else "missed"
        if self.most is not None:
            return "reached" if value <= self.most else "missed"
        return ""

    @property
    def text(self) -> str:
        if self.least is not None:
            return f">= {self.least:g}"
        return f"<= {self.most:g}" if self.most is not None else ""


GOALS = (
    Goal(key="shm_vs_best_peer", least=5.0, says="best peer's time / elasticps's, one machine"),
    Goal(key="shm_vs_roofline", least=0.7, says="time of the bytes at copy bandwidth / taken"),
    Goal(key="tcp_vs_socket", least=0.9, says="bare uvloop socket's time / elasticps's, TCP"),
    Goal(key="tcp_vs_best_peer", least=1.1, says="best peer's time / elasticps's, TCP"),
    Goal(key="small_shm_p50_us", most=80.0, says="4 KB pushed and pulled, one machine"),
    Goal(key="small_tcp_p50_us", most=250.0, says="4 KB pushed and pulled, TCP"),
    Goal(key="step_vs_ddp", most=1.0, says="step / torch DDP's, the larger of two models"),
    Goal(key="int8_speedup_1gbit", least=3.0, says="step with no codec / with int8, 1 Gbit/s"),
    Goal(key="server_rss_vs_needed", most=1.15, says="server's memory / values and moments"),
    Goal(key="r2_vs_r1", most=1.6, says="step with two copies / one"),
    Goal(key="cpu_s_per_gb", says="CPU seconds, all processes, a GB pushed or pulled"),
    Goal(key="tls_of_plain", says="blocks over TLS / over plain TCP"),
)


def table(found: Mapping[str, Any]) -> Table:
    result = Table(title="what make bench reports", columns=("", "value", "goal", "", "is"))
    for goal in GOALS:
        value = found.get(goal.key)
        cells = ("" if value is None else float(value)), goal.text, goal.verdict(value), goal.says
        result.add(goal.key, *cells)
    return result
