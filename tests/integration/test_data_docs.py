"""Each program of docs/data.md runs as it stands."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

import pytest

from elasticps.testing.rig import Rig

PAGE = Path(__file__).parents[2] / "docs" / "data.md"
PROGRAMS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


@pytest.mark.parametrize("number", range(len(PROGRAMS)))
async def test_a_program_of_the_page_runs(number: int, monkeypatch: pytest.MonkeyPatch) -> None:
    program = compile(PROGRAMS[number], f"{PAGE.name}[{number}]", "exec")
    async with Rig() as rig:
        for key, item in rig.environment("w1").items():
            monkeypatch.setenv(key, item)
        await asyncio.to_thread(exec, program, {"__name__": "__main__"})
        assert rig.finished["w1"].left is False
