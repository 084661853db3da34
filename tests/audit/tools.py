"""Each tool is run for real, and what it found is counted from what it wrote, never assumed.

Raises Unjudged for a tool that is absent, breaks off, or whose words do not fit its exit code.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

from elasticps.daemon.service import FILES, text_of

BIN = Path(sys.executable).parent
LIMIT_S = 1200.0
EXPOSURE = re.compile(r"Overall exposure level for \S+: ([0-9.]+) ")
CONTRACTS = re.compile(r"Contracts: ([0-9]+) kept, ([0-9]+) broken")
UNREACHABLE = re.compile(
    r"ConnectionError|Max retries exceeded|timed? ?out|resolve|Connection refused|ServiceError"
)


class Unjudged(Exception):
    """There is no word of the tool to go by."""


@dataclass(frozen=True, slots=True)
class Ran:
    code: int
    out: str
    err: str = ""


def run(*command: str | Path, root: Path, env: dict[str, str] | None = None) -> Ran:
    try:
        done = subprocess.run(
            [str(part) for part in command],
            cwd=root,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=LIMIT_S,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise Unjudged(f"{Path(command[0]).name} was not run: {error}") from None
    return Ran(code=done.returncode, out=done.stdout, err=done.stderr)


def _agreed(ran: Ran, count: int, name: str) -> int:
    """A tool fails where it has found something, and only there."""
    if (ran.code != 0) != (count > 0):
        words = (ran.err or ran.out).strip()[-300:]
        raise Unjudged(f"{name} exited with {ran.code} and named {count} findings: {words}")
    return count


def _rows(text: str, name: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        raise Unjudged(f"{name} wrote no JSON: {error}: {text[:200]!r}") from None


def ruff(root: Path) -> int:
    ran = run(BIN / "ruff", "check", "--no-cache", "--output-format", "json", ".", root=root)
    return _agreed(ran, len(_rows(ran.out, "ruff")), "ruff")


def mypy(root: Path, *arguments: str) -> int:
    ran = run(BIN / "mypy", "--output", "json", *arguments, root=root)
    rows = [_rows(line, "mypy") for line in ran.out.splitlines() if line.startswith("{")]
    errors = sum(row["severity"] == "error" for row in rows)
    return _agreed(ran, errors, "mypy")


def import_contract(root: Path) -> int:
    ran = run(BIN / "lint-imports", "--no-cache", "--no-logo", root=root)
    found = CONTRACTS.search(ran.out)
    if found is None or not int(found[1]) + int(found[2]):
        raise Unjudged(f"lint-imports named no contracts: {(ran.err or ran.out)[-300:]}")
    return _agreed(ran, int(found[2]), "lint-imports")


def bandit_high(root: Path, *folders: str) -> int:
    """Findings of high severity; others make bandit fail too, and are for a reader."""
    ran = run(BIN / "bandit", "-q", "-r", "-f", "json", *folders, root=root)
    found = _rows(ran.out, "bandit")
    if found["errors"] or not found["metrics"]["_totals"]["loc"]:
        raise Unjudged(f"bandit has not read everything: {found['errors']}")
    return sum(row["issue_severity"] == "HIGH" for row in found["results"])


def pip_audit(root: Path) -> int | None:
    """Known vulnerabilities of what is installed here; None where nobody could be asked."""
    with tempfile.TemporaryDirectory() as cache:
        ran = run(
            *(BIN / "pip-audit", "--local", "--skip-editable", "--format", "json"),
            *("--progress-spinner", "off", "--timeout", "15", "--cache-dir", cache),
            root=root,
        )
    if not ran.out.strip():
        if UNREACHABLE.search(ran.err):
            return None
        raise Unjudged(f"pip-audit exited with {ran.code}: {ran.err.strip()[-300:]}")
    asked = [row for row in _rows(ran.out, "pip-audit")["dependencies"] if "vulns" in row]
    if not asked:
        return None
    return sum(len(row["vulns"]) for row in asked)


def units_are_sound(folder: Path) -> None:
    """``systemd-analyze verify`` of the units as they are installed. Raises Unjudged."""
    runnable = shutil.which("true") or "/bin/true"
    for file in FILES:
        if file.place.startswith("etc/systemd/system/"):
            (folder / file.name).write_text(text_of(file, runnable, cores=4))
    verify(sorted(folder.iterdir()))


def verify(units: Sequence[Path]) -> None:
    ran = run("systemd-analyze", "verify", "--man=no", *units, root=Path())
    if ran.code or ran.out or ran.err:
        raise Unjudged(f"systemd-analyze verify: {(ran.err or ran.out).strip()[-300:]}")


def exposure(unit: Path) -> float:
    """0 is best, 10 is worst; by systemd's own weights."""
    ran = run("systemd-analyze", "security", "--offline=true", "--no-pager", unit, root=Path())
    found = EXPOSURE.search(ran.out)
    if found is None:
        raise Unjudged(f"systemd-analyze security: {(ran.err or ran.out).strip()[-300:]}")
    return float(found[1])


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a run of pytest has written down: of each failure the first line of its reason.

    ``told`` are the properties that tests recorded.
    """

    ran: int
    failed: Mapping[str, str]
    skipped: tuple[str, ...]
    told: dict[str, str]


def tests(root: Path, *arguments: str) -> Report:
    """Run pytest and read its JUnit file."""
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder, "report.xml")
        # A skip is told here; it need not fail the run too.
        ran = run(
            *(sys.executable, "-m", "pytest", "-q", "--no-header", "-p", "no:cacheprovider"),
            # The later format has no properties of tests: to record one is a warning there.
            *(f"--junit-xml={report}", "-o", "junit_family=xunit1", *arguments),
            root=root,
            env={"ELASTICPS_CI": ""},
        )
        if ran.code not in (0, 1) or not report.exists():
            words = (ran.err or ran.out).strip()[-300:]
            raise Unjudged(f"pytest exited with {ran.code}: {words}")
        made = read_report(report.read_text())
    if bool(made.failed) != (ran.code == 1):
        raise Unjudged(f"pytest exited with {ran.code} and named {len(made.failed)} failures")
    return made


def read_report(xml: str) -> Report:
    """Of a test that fails and breaks its fixture's end too there are two rows, one name."""
    failed: dict[str, str] = {}
    skipped: set[str] = set()
    seen: set[str] = set()
    told: dict[str, str] = {}
    for case in ElementTree.fromstring(xml).iter("testcase"):
        name = f"{case.get('classname')}::{case.get('name')}"
        seen.add(name)
        wrong = [row for row in case if row.tag in ("failure", "error")]
        if wrong:
            failed[name] = str(wrong[0].get("message")).partition("\n")[0]
        elif case.find("skipped") is not None:
            skipped.add(name)
        for row in case.iter("property"):
            told[str(row.get("name"))] = str(row.get("value"))
    return Report(
        ran=len(seen - skipped),
        failed=failed,
        skipped=tuple(sorted(skipped)),
        told=told,
    )
