"""docs/operating.md, pasted: a cluster in network namespaces, from nothing through its troubles.

The namespaces have names of this run, and end with it, also when it fails.
"""

from __future__ import annotations

import os
import secrets
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from elasticps.store.embedded import find_etcd
from tests.support.walk_through import Shell, Step, is_shown, shell, steps, walk

PAGE = Path(__file__).resolve().parents[2] / "docs" / "operating.md"
FIRST_JOB = "A job"
LAST = "Take it away"
LIMIT_S = 540.0


def missing() -> str:
    """What this machine lacks; empty where the page can be pasted."""
    if os.geteuid() != 0:
        return "root"
    absent = [name for name in ("bash", "ip", "tc") if shutil.which(name) is None]
    if absent:
        return ", ".join(absent)
    beside = find_etcd().path.parent
    absent = [name for name in ("etcdctl", "etcdutl") if not (beside / name).exists()]
    return ", ".join(absent)


@pytest.fixture
def lab() -> Iterator[Shell]:
    """A shell in a folder with a short name, for Unix sockets are made below it."""
    if lacking := missing():
        pytest.skip(f"needs {lacking}")
    name = f"eps{secrets.token_hex(3)}"
    directory = Path(tempfile.mkdtemp(prefix=f"{name}-"))
    environment = {
        key: value
        for key, value in os.environ.items()
        if not key.startswith(("ELASTICPS_", "ETCD"))
    }
    tools = (find_etcd().path.parent, Path(sys.executable).parent)
    environment["PATH"] = os.pathsep.join([*map(str, tools), environment["PATH"]])
    environment |= {"LAB": name, "COLUMNS": "200"}
    try:
        with shell(directory, environment, LIMIT_S) as made:
            yield made
    finally:
        remove_namespaces(name)
        shutil.rmtree(directory)


def remove_namespaces(name: str) -> None:
    listed = subprocess.run(["ip", "netns"], capture_output=True, text=True, check=True).stdout
    for line in listed.splitlines():
        space = line.split()[0]
        if not space.startswith(f"{name}-"):
            continue
        pids = subprocess.run(
            ["ip", "netns", "pids", space], capture_output=True, text=True, check=True
        ).stdout.split()
        if pids:  # some may have ended since
            subprocess.run(["kill", "-9", *pids], check=False)
        subprocess.run(["ip", "netns", "del", space], check=True)


def first_half() -> list[Step]:
    found = steps(PAGE.read_text())
    sections = list(dict.fromkeys(step.section for step in found))
    wanted = {*sections[: sections.index(FIRST_JOB) + 1], LAST}
    return [step for step in found if step.section in wanted]


@pytest.mark.timeout(LIMIT_S)
def test_the_page_leads_from_nothing_to_a_job_that_trains(lab: Shell) -> None:
    walk(lab, first_half())


@pytest.mark.long
@pytest.mark.timeout(LIMIT_S)
def test_the_whole_page_works_when_pasted(lab: Shell) -> None:
    walk(lab, steps(PAGE.read_text()))


def test_every_section_that_shows_something_has_it_checked() -> None:
    found = steps(PAGE.read_text())
    assert found[-1].section == LAST
    assert PAGE.read_text().count("```text") == sum(bool(step.shown) for step in found)


@pytest.mark.parametrize(
    ("line", "output", "shown"),
    [
        ("b: restarted in 9.1 s", "x\nb: restarted in 12.0 s\n", True),
        ("a ready 0 0", "NODE\na *   ready  3  4\n", True),
        ("train RUNNING", "train  FAILED\nother  RUNNING\n", False),
        ("0 faults", "10 ok, 2 faults\n", True),
    ],
)
def test_a_line_is_looked_for_whatever_its_numbers_are(line: str, output: str, shown: bool) -> None:
    assert is_shown(line, output) is shown
