"""Third-party packages as pip leaves them: a module beside a ``.dist-info`` with entry points."""

from __future__ import annotations

import sys
import textwrap
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Install = Callable[..., Path]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Install]:
    """Call ``install(distribution, module, source, {"group": {"name": "module:object"}})``.

    Each distribution gets a directory of its own on ``sys.path``; the modules are forgotten again.
    """
    before = set(sys.modules)

    def one(
        distribution: str,
        module: str,
        source: str,
        entry_points: dict[str, dict[str, str]],
        *,
        version: str = "1.0",
    ) -> Path:
        site = tmp_path / distribution
        info = site / f"{distribution.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (site / f"{module}.py").write_text(textwrap.dedent(source))
        headers = f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n"
        (info / "METADATA").write_text(headers)
        sections = (
            "\n".join([f"[{group}]", *(f"{name} = {target}" for name, target in names.items())])
            for group, names in entry_points.items()
        )
        (info / "entry_points.txt").write_text("\n".join(sections) + "\n")
        monkeypatch.syspath_prepend(site)
        return site

    yield one
    for name in set(sys.modules) - before:
        if str(tmp_path) in (getattr(sys.modules[name], "__file__", None) or ""):
            del sys.modules[name]
