"""A documentation page whose ``bash`` blocks are pasted into one shell, in order."""

from __future__ import annotations

import re
import secrets
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

BLOCK = re.compile(r"^```(\w+)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
HEADING = re.compile(r"^## (.*)$", re.MULTILINE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """A block to paste, and the lines that the page shows below it."""

    section: str
    commands: str
    shown: tuple[str, ...] = ()


def steps(page: str) -> list[Step]:
    """The page's ``bash`` blocks, each with the ``text`` block that follows it at once."""
    found: list[Step] = []
    parts = HEADING.split(page)
    for section, text in zip(parts[1::2], parts[2::2], strict=True):
        end = 0
        for block in BLOCK.finditer(text):
            kind, body = block.groups()
            if kind == "bash":
                found.append(Step(section=section, commands=body))
            elif kind == "text" and not text[end : block.start()].strip():
                shown = tuple(line.strip() for line in body.splitlines() if line.strip())
                last = found.pop()
                found.append(Step(section=section, commands=last.commands, shown=shown))
            end = block.end()
    return found


def is_shown(line: str, output: str) -> bool:
    """Whether some line of the output has the words of ``line``, or begins of words, in order.

    Numbers are as good as any others.
    """
    return any(_has(_words(each), _words(line)) for each in output.splitlines())


def _words(line: str) -> list[str]:
    return re.sub(r"\d[\d.]*", "0", line).split()


def _has(found: list[str], wanted: list[str]) -> bool:
    rest = iter(found)
    return all(any(word.startswith(each) for word in rest) for each in wanted)


class Shell:
    """One bash that stops at the first command that fails."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self._mark = f"--{secrets.token_hex(8)}--"

    def paste(self, commands: str) -> str:
        """What they wrote to both streams. Raises AssertionError when one of them failed."""
        stdin, stdout = self._process.stdin, self._process.stdout
        assert stdin is not None
        assert stdout is not None
        stdin.write(f"{commands}\necho {self._mark}\n")
        stdin.flush()
        lines = []
        for line in stdout:
            if line.strip().endswith(self._mark):
                return "".join([*lines, line.replace(self._mark, "").rstrip()])
            lines.append(line)
        raise AssertionError(f"a command failed:\n{commands}\n-- it wrote:\n{''.join(lines)}")


@contextmanager
def shell(directory: Path, environment: Mapping[str, str], limit_s: float) -> Iterator[Shell]:
    """A bash in ``directory`` that is killed after ``limit_s``."""
    process = subprocess.Popen(
        ["bash", "--norc", "-s"],
        cwd=directory,
        env=dict(environment),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    watchdog = threading.Timer(limit_s, process.kill)
    watchdog.start()
    try:
        made = Shell(process)
        made.paste("set -euo pipefail")
        yield made
    finally:
        watchdog.cancel()
        process.kill()
        process.communicate()


def walk(shell: Shell, wanted: Sequence[Step]) -> None:
    """Paste each step, and look for what the page shows. Raises AssertionError with all misses."""
    misses = []
    for step in wanted:
        output = shell.paste(step.commands)
        missed = [line for line in step.shown if not is_shown(line, output)]
        if missed:
            told = "\n".join(missed)
            misses.append(f"{step.section}: not shown:\n{told}\n-- but:\n{output}")
    assert not misses, "\n\n".join(misses)
