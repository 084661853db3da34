"""The plan held against what then happens: it measures times, and is alone as the chaos is."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.chaos.network import can_be_made

ROOT = Path(__file__).parents[2]
RATES = ("20mbit", "200mbit", "unlimited")
CHOICES = ("data-parallel/none", "data-parallel/int8", "all-reduce/none", "local-sgd:h=16/none")
WHY_NOT = can_be_made()


def compared(*rates: str) -> dict[str, dict[str, Any]]:
    """By link speed, what the benchmark has measured beside what it has predicted."""
    command = [sys.executable, "-m", "benchmarks.plan", "--replicas", 1, "--layers", 4]
    options = ["--rounds", 3, "--rates", *rates, "--choices", *CHOICES]
    ran = subprocess.run(
        [str(part) for part in (*command, *options)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    return {link["rate"]: link for link in json.loads(ran.stdout.splitlines()[-1])["links"]}


def mispredicted(link: dict[str, Any]) -> set[tuple[str, str]]:
    """The pairs whose measured times are clearly apart, predicted in the other order."""
    return {(one, other) for one, other in link["mispredicted"]}


@pytest.mark.long
@pytest.mark.skipif(bool(WHY_NOT), reason=f"THE PREDICTED RANKING IS NOT CHECKED: {WHY_NOT}")
@pytest.mark.timeout(900)
def test_the_predicted_ranking_is_the_measured_one_on_three_link_speeds(
    record_property: Callable[[str, object], None],
) -> None:
    links = compared(*RATES)
    # What else the machine does may come between a trial and what it predicts; hardly twice.
    doubtful = [rate for rate, link in links.items() if mispredicted(link)]
    again = compared(*doubtful) if doubtful else {}
    record_property("links", [links, again])
    for rate in doubtful:
        assert not mispredicted(links[rate]) & mispredicted(again[rate])
    slow, middle, fast = (links[rate] for rate in RATES)
    assert slow["measured_bytes_per_s"] == pytest.approx(20e6 / 8, rel=0.4)
    assert slow["measured_bytes_per_s"] < middle["measured_bytes_per_s"]
    assert middle["measured_bytes_per_s"] < fast["measured_bytes_per_s"]
    assert slow["pairs"] >= 3  # else there was nothing to predict
    assert slow["auto_approximate"] == "local-sgd:h=16/none"
