"""What the README tells a newcomer to paste works when pasted."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

README = Path(__file__).resolve().parents[2] / "README.md"
ELASTICPS = Path(sys.executable).with_name("elasticps")


def put_script(directory: Path) -> None:
    (script,) = re.findall(r"```python\n# train\.py\n(.*?)```", README.read_text(), re.DOTALL)
    (directory / "train.py").write_text(script)


def test_the_quick_start_trains_on_two_nodes_when_pasted(tmp_path: Path) -> None:
    assert "elasticps run --nodes 2 train.py" in README.read_text()
    put_script(tmp_path)
    ran = subprocess.run(
        [ELASTICPS, "run", "--nodes", "2", "train.py"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    assert re.search(r"\[n\d\] loss \d\.\d+ after 400 rounds on 2 workers", ran.stdout), ran.stdout


Start = Callable[..., subprocess.Popen[str]]


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Start]:
    """Starts ``elasticps``, as a user does in ``tmp_path``; it has ended when the test has."""
    with contextlib.ExitStack() as stack:

        def run(*arguments: str, **more: Any) -> subprocess.Popen[str]:
            process = subprocess.Popen(
                [ELASTICPS, *arguments],
                cwd=tmp_path,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                text=True,
                **more,
            )
            stack.enter_context(process)
            stack.callback(process.kill)
            return process

        yield run


@pytest.mark.long
def test_the_checkpoint_commands_work_when_pasted_in_their_order(
    start: Start, tmp_path: Path
) -> None:
    section = README.read_text().partition("### Checkpoints")[2]
    commands = [shlex.split(line, comments=True) for line in section.split("```")[1].splitlines()]
    first, now, look, export, back, resume = (command[1:] for command in commands if command)
    put_script(tmp_path)
    running = start(*first)
    assert running.stderr is not None
    told = [running.stderr.readline()]
    while not (api := re.search("cluster API: (.*)", told[-1])):
        assert told[-1], told
        told.append(running.stderr.readline())
    environment = {**os.environ, "ELASTICPS_API": api[1]}
    # There is no such job for a moment; then it trains for as long as the command may take.
    while True:
        asking = start(*now, env=environment)
        out, error = asking.communicate(timeout=110)
        if asking.returncode == 0 or "no job" not in error:
            break
    assert asking.returncode == 0, error
    assert re.fullmatch(r".*/saved/round-\d{8}\n", out)
    looking = start(*look, env=environment)
    listed, error = looking.communicate(timeout=110)
    assert looking.returncode == 0, error
    assert "complete" in listed
    out, error = running.communicate(timeout=110)
    assert running.returncode == 0, error
    assert re.search(r"loss \d\.\d+ after 400 rounds on 3 workers", out), out
    newest = max((tmp_path / "saved").glob("round-*"))
    assert newest.name == "round-00000400"
    for command in (export, back):
        working = start(*command)
        _, error = working.communicate(timeout=110)
        assert working.returncode == 0, error
    assert (tmp_path / "weights.safetensors").is_file()
    resumed = start(*resume)
    again, error = resumed.communicate(timeout=110)
    assert resumed.returncode == 0, error
    assert re.search(r"loss \d\.\d+ after 400 rounds on 2 workers", again), again
    assert loss_in(again) == loss_in(out)


def loss_in(printed: str) -> str:
    """The main worker's; one that joins when that has left is main then, and prints it too."""
    (loss,) = set(re.findall(r"loss (\d\.\d+)", printed))
    return loss


@pytest.mark.long
def test_the_character_model_learns(tmp_path: Path) -> None:
    script = README.parent / "examples" / "charlm.py"
    ran = subprocess.run(
        [ELASTICPS, "run", "--audit", script, "--rounds", "30", "--layers", "1"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert ran.returncode == 0, ran.stderr
    bits = [float(found) for found in re.findall(r"([\d.]+) bits a character", ran.stdout)]
    assert bits[-1] < bits[0] < 7.0, ran.stdout
    assert "0 lost, 0 duplicated" in ran.stdout + ran.stderr
