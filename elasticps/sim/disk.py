"""A disk in memory with a page cache, and what is left on it when the power goes.

What was written and not synced may be there, or not, or in part. Each change of a directory's
names is kept or lost on its own, whatever came before and after it, for a file system without a
journal writes the blocks of a directory back in any order; a rename alone is never halved.
"""

from __future__ import annotations

import errno
import hashlib
import io
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from random import Random
from typing import BinaryIO, NoReturn

_WRITER = re.compile(r"\.[0-9a-f]+\.tmp")
"""The part of a temporary name that is not the same in a replay."""


class PowerCut(Exception):
    """The machine went off: nothing that its processes do has any effect."""


@dataclass(slots=True, eq=False)
class _File:
    content: bytes = b""
    synced: bool = False


@dataclass(slots=True, eq=False)
class _Directory:
    """``changes`` are those that ``durable`` lacks: the new node of each name, None for none."""

    names: dict[str, _Node] = field(default_factory=dict)
    durable: dict[str, _Node] = field(default_factory=dict)
    changes: list[dict[str, _Node | None]] = field(default_factory=list)

    def change(self, change: dict[str, _Node | None]) -> None:
        self.changes.append(change)
        _apply(self.names, change)

    def sync(self) -> None:
        self.durable = dict(self.names)
        self.changes.clear()


_Node = _File | _Directory


def _apply(names: dict[str, _Node], change: dict[str, _Node | None]) -> None:
    for name, node in change.items():
        if node is None:
            names.pop(name, None)
        else:
            names[name] = node


class Disk:
    """Every change is a step, and between two of them the power may go.

    ``cut_at`` is the number of the step that does not happen any more. All that is left to chance
    is drawn from ``random``.
    """

    def __init__(self, random: Random) -> None:
        self.steps = 0
        self.cut_at: int | None = None
        self.trace: list[str] = []
        self._random = random
        self._top = _Directory()

    @property
    def digest(self) -> str:
        """SHA-256 of the whole trace: two runs with one digest are the same run."""
        return hashlib.sha256("\n".join(self.trace).encode()).hexdigest()

    def note(self, what: str) -> None:
        self.trace.append(f"{self.steps} {what}")

    # -- power ----------------------------------------------------------------------------------

    def restart(self) -> None:
        """Cut the power, and put it on again: what is there from now on is durable."""
        self.cut_at = None
        kept = self._random.choice([0.1, 0.5, 0.9])
        self.note(f"power cut: what was not synced is kept at {kept}")
        self._lose(self._top, kept)

    def _lose(self, directory: _Directory, kept: float) -> None:
        names = directory.durable
        for change in directory.changes:
            if self._random.random() < kept:
                _apply(names, change)
        directory.names = names
        directory.sync()
        for node in names.values():
            if isinstance(node, _Directory):
                self._lose(node, kept)
            elif not node.synced:
                node.content = self._torn(node.content)
                node.synced = True

    def _torn(self, content: bytes) -> bytes:
        """Its length may be on the disk before its content is."""
        there = content[: self._random.randint(0, len(content))]
        return self._random.choice([b"", content, there, there.ljust(len(content), b"\0")])

    def _step(self, what: str, path: Path) -> None:
        if self.cut_at is not None and self.steps >= self.cut_at:
            raise PowerCut
        self.steps += 1
        self.note(f"{what} {_WRITER.sub('.tmp', str(path))}")

    # -- looking --------------------------------------------------------------------------------

    def exists(self, path: Path) -> bool:
        return self._find(path) is not None

    def is_file(self, path: Path) -> bool:
        return isinstance(self._find(path), _File)

    def entries(self, directory: Path) -> list[Path]:
        return [directory / name for name in self._directory(directory).names]

    def sizes(self, directory: Path) -> dict[str, int]:
        names = self._directory(directory).names
        return {key: len(node.content) for key, node in names.items() if isinstance(node, _File)}

    def open(self, path: Path) -> BinaryIO:
        node = self._find(path)
        if not isinstance(node, _File):
            _refuse(errno.ENOENT if node is None else errno.EISDIR, path)
        return io.BytesIO(node.content)

    # -- changing -------------------------------------------------------------------------------

    def make_directory(self, path: Path) -> None:
        self._add("make", path, _Directory())

    def make_directories(self, path: Path) -> None:
        for directory in [*reversed(path.parents), path]:
            if not isinstance(self._find(directory), _Directory):
                self.make_directory(directory)

    def create(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        self.write(path, parts)
        self.sync_file(path)

    def write(self, path: Path, parts: Iterable[bytes | memoryview]) -> None:
        file = _File()
        self._add("create", path, file)
        for part in parts:
            self._step("write", path)
            file.content += part

    def link(self, source: Path, target: Path) -> None:
        node = self._find(source)
        if not isinstance(node, _File):
            _refuse(errno.ENOENT if node is None else errno.EPERM, source)
        self._add("link", target, node)

    def rename(self, source: Path, target: Path) -> None:
        assert source.parent == target.parent, "what else is changed at once is not known"
        node = self._find(source)
        if node is None:
            _refuse(errno.ENOENT, source)
        if self.exists(target):
            _refuse(errno.ENOTEMPTY, target)
        self._step("rename", target)
        self._directory(source.parent).change({source.name: None, target.name: node})

    def remove_tree(self, path: Path, *, ignore_errors: bool = False) -> None:
        node = self._find(path)
        if node is None:
            if not ignore_errors:
                _refuse(errno.ENOENT, path)
            return
        if isinstance(node, _Directory):
            for name in self._random.sample(list(node.names), len(node.names)):
                self.remove_tree(path / name)
        self._step("remove", path)
        self._directory(path.parent).change({path.name: None})

    def sync_file(self, path: Path) -> None:
        """Make a file's content durable."""
        self._step("sync", path)
        node = self._find(path)
        assert isinstance(node, _File)
        node.synced = True

    def sync_directory(self, path: Path) -> None:
        self._step("sync names in", path)
        self._directory(path).sync()

    def _add(self, what: str, path: Path, node: _Node) -> None:
        parent = self._directory(path.parent)
        if path.name in parent.names:
            _refuse(errno.EEXIST, path)
        self._step(what, path)
        parent.change({path.name: node})

    def _directory(self, path: Path) -> _Directory:
        node = self._find(path)
        if not isinstance(node, _Directory):
            _refuse(errno.ENOENT if node is None else errno.ENOTDIR, path)
        return node

    def _find(self, path: Path) -> _Node | None:
        node: _Node | None = self._top
        for name in path.parts[1:]:
            node = node.names.get(name) if isinstance(node, _Directory) else None
        return node


def _refuse(code: int, path: Path) -> NoReturn:
    raise OSError(code, os.strerror(code), str(path))
