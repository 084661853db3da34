"""``python -m tests.audit``: run everything, say how it goes, and print one JSON object last.

Exit code 1 where any count is off, or was not to be had.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from tests.audit import tools
from tests.audit.tools import Report, Unjudged
from tests.audit.verdict import Count, off

ROOT = Path(__file__).parents[2]
SYSTEMD = ROOT / "systemd"
CANARIES = "tests/integration/cluster/test_security.py"
"""Whole: the last of it looks for secrets in what the others have left behind."""
Found = TypeVar("Found")


class Audit:
    """``troubles`` are what no count says, and what makes the verdict bad all the same."""

    def __init__(self) -> None:
        self.counts: dict[str, Count] = {}
        self.troubles: list[str] = []

    def run(self) -> None:
        self._count("ruff", lambda: tools.ruff(ROOT))
        self._count("mypy", lambda: tools.mypy(ROOT))
        self._count("import_contract", lambda: tools.import_contract(ROOT))
        self._count("bandit_high", lambda: tools.bandit_high(ROOT, "elasticps", "plugins"))
        self._ask_for_known_vulnerabilities()
        self._count("secret_leaks", self._leaks)
        self._look_at_units()
        self._try_bad_inputs()

    def _count(self, name: str, tool: Callable[[], Count]) -> None:
        self.counts[name] = self._judged(name, tool)

    def _judged(self, name: str, tool: Callable[[], Found]) -> Found | None:
        began_s = time.monotonic()
        try:
            found = tool()
        except Unjudged as error:
            self.troubles.append(f"{name}: {error}")
            say(f"{name}: NOT COUNTED: {error}")
            return None
        shown = f"{found.ran} ran" if isinstance(found, Report) else found
        say(f"{name}: {shown}  ({time.monotonic() - began_s:.0f} s)")
        return found

    def _ask_for_known_vulnerabilities(self) -> None:
        try:
            found = tools.pip_audit(ROOT)
        except Unjudged as error:
            self.troubles.append(f"pip-audit: {error}")
            say(f"pip-audit: NOT COUNTED: {error}")
            return
        if found is None:
            say("pip-audit: NOT ASKED: its advisory service is not reachable from here")
            return
        say(f"pip-audit: {found} known vulnerabilities")
        if found:
            self.troubles.append(f"pip-audit: {found} known vulnerabilities")

    def _leaks(self) -> int:
        made = tools.tests(ROOT, CANARIES)
        self.troubles += [f"{name}: {why}" for name, why in made.failed.items()]
        if "secret_leaks" not in made.told:
            raise Unjudged(f"the canaries were not counted: {dict(made.failed) or made.skipped}")
        return int(made.told["secret_leaks"])

    def _look_at_units(self) -> None:
        with tempfile.TemporaryDirectory() as folder:
            self._judged("systemd-analyze verify", lambda: tools.units_are_sound(Path(folder)))
        for name, unit in (("daemon", "elasticpsd"), ("worker", "elasticps-worker@")):
            path = SYSTEMD / f"{unit}.service"
            self._count(f"systemd_exposure_{name}", lambda path=path: tools.exposure(path))

    def _try_bad_inputs(self) -> None:
        made = self._judged("bad inputs", lambda: tools.tests(ROOT, "-m", "bad_input", "tests"))
        self.counts["bad_inputs_tried"] = made and made.ran
        self.counts["bad_inputs_wrong"] = None if made is None else len(made.failed)
        for name, why in made.failed.items() if made else ():
            say(f"  wrong: {name}: {why}")
        for name in made.skipped if made else ():
            self.troubles.append(f"not tried: {name}")


def say(text: str) -> None:
    print(text, flush=True)  # noqa: T201


def main() -> int:
    audit = Audit()
    audit.run()
    wrong = off(audit.counts) + audit.troubles
    for text in wrong:
        say(f"OFF: {text}")
    say(json.dumps(audit.counts))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
