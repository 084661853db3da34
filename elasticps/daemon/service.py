"""The systemd service: which files belong where, and the steps that put them there or remove them.

The files are package data, so that an installation by pip has them. Steps are values: shown first,
done afterwards.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from importlib.resources import files
from pathlib import Path

from elasticps.errors import ElasticError, UsageError

SAMPLE_PYTHON = "/opt/elasticps/bin/python"
HIDDEN = ("/tmp", "/var/tmp", "/dev/shm")  # noqa: S108 - named to be refused
COMMAND_TIMEOUT_S = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceFile:
    """A file of the package and its place. ``kept``: the operator's own once it is there."""

    name: str
    place: str
    kept: bool = False


FILES = (
    ServiceFile(name="elasticpsd.service", place="etc/systemd/system/elasticpsd.service"),
    ServiceFile(
        name="elasticps-worker@.service", place="etc/systemd/system/elasticps-worker@.service"
    ),
    ServiceFile(name="elasticps.target", place="etc/systemd/system/elasticps.target"),
    ServiceFile(name="sysusers.conf", place="etc/sysusers.d/elasticps.conf"),
    ServiceFile(name="tmpfiles.conf", place="etc/tmpfiles.d/elasticps.conf"),
    ServiceFile(name="polkit.rules", place="etc/polkit-1/rules.d/50-elasticps.rules"),
    ServiceFile(name="elasticps.toml", place="etc/elasticps/elasticps.toml", kept=True),
)
UNITS = ("elasticps.target", "elasticpsd.service")
AFTER_INSTALL = (
    ("systemd-sysusers", "elasticps.conf"),
    ("systemd-tmpfiles", "--create", "elasticps.conf"),
    ("systemctl", "daemon-reload"),
)
BEFORE_UNINSTALL = (("systemctl", "disable", "--now", *UNITS),)
AFTER_UNINSTALL = (("systemctl", "daemon-reload"),)


class Found(StrEnum):
    """What is at a file's place."""

    MISSING = "missing"
    SAME = "same"
    DIFFERENT = "different"
    OWN = "your own"


@dataclass(frozen=True, slots=True, kw_only=True)
class Write:
    path: Path
    text: str
    found: Found

    def __str__(self) -> str:
        verb = "write" if self.found is Found.MISSING else "replace"
        return f"{verb} {self.path}"

    def do(self) -> None:
        for folder in reversed(self.path.parents):
            if not folder.exists():
                folder.mkdir()
                folder.chmod(0o755)  # whatever root's umask is
        fresh = self.path.with_name(f".{self.path.name}.fresh")
        fresh.write_text(self.text)
        fresh.chmod(0o644)
        fresh.replace(self.path)


@dataclass(frozen=True, slots=True, kw_only=True)
class Remove:
    path: Path

    def __str__(self) -> str:
        return f"remove {self.path}"

    def do(self) -> None:
        self.path.unlink(missing_ok=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    argv: tuple[str, ...]

    def __str__(self) -> str:
        return "run " + " ".join(self.argv)

    def do(self) -> None:
        """Raises ElasticError with what the command said."""
        try:
            done = subprocess.run(  # noqa: S603 - no shell, and the commands are in this file
                self.argv,
                capture_output=True,
                text=True,
                check=False,
                timeout=COMMAND_TIMEOUT_S,
            )
        except OSError as error:
            raise ElasticError(f"cannot be run: {error.strerror}", where=self.argv[0]) from error
        if done.returncode != 0:
            said = (done.stderr or done.stdout).strip()
            raise ElasticError(f"failed: {said}", where=" ".join(self.argv))


@dataclass(frozen=True, slots=True, kw_only=True)
class Keep:
    path: Path
    why: str

    def __str__(self) -> str:
        return f"keep {self.path} ({self.why})"

    def do(self) -> None:
        return


Step = Write | Remove | Run | Keep


def text_of(file: ServiceFile, python: str, cores: int) -> str:
    """The file as it is to be here: with this Python, and limits for as many cores."""
    text = (files("elasticps") / "systemd" / file.name).read_text()
    text = text.replace(SAMPLE_PYTHON, python.replace("%", "%%"))
    return re.sub(r"(?m)^CPUQuota=.*$", f"CPUQuota={max(1, cores - 1)}00%", text)


def found(file: ServiceFile, root: Path, python: str, cores: int) -> Found:
    """What is there now. Raises OSError where that cannot be read."""
    try:
        there = (root / file.place).read_text(errors="replace")
    except FileNotFoundError:
        return Found.MISSING
    if there == text_of(file, python, cores):
        return Found.SAME
    return Found.OWN if file.kept else Found.DIFFERENT


def install_steps(root: Path, python: str, cores: int = 0) -> Iterator[Step]:
    """What puts the service in place below ``root``; on the machine itself systemd is told too."""
    cores = cores or os.cpu_count() or 1
    for file in FILES:
        path, there = root / file.place, found(file, root, python, cores)
        if there in (Found.SAME, Found.OWN):
            yield Keep(path=path, why=there.value)
        else:
            yield Write(path=path, text=text_of(file, python, cores), found=there)
    if root == Path("/"):
        yield from (Run(argv=argv) for argv in AFTER_INSTALL)


def uninstall_steps(root: Path) -> Iterator[Step]:
    """What takes the service away; the operator's files and what the daemon kept stay."""
    there = [file for file in FILES if (root / file.place).exists()]
    units = [file for file in there if file.name in UNITS]
    if root == Path("/") and units:
        yield from (Run(argv=argv) for argv in BEFORE_UNINSTALL)
    for file in there:
        path = root / file.place
        yield Keep(path=path, why="your own") if file.kept else Remove(path=path)
    for place in ("var/lib/elasticps", "var/log/elasticps", "var/lib/elasticps-jobs"):
        if (root / place).exists():
            yield Keep(path=root / place, why="what the daemon and its jobs wrote")
    if root == Path("/") and units:
        yield from (Run(argv=argv) for argv in AFTER_UNINSTALL)


def check_python(python: str) -> None:
    """Raise UsageError where the service's users could not run this Python."""
    path = Path(python)
    hint = "install elasticps where all may read it: python3 -m venv /opt/elasticps"
    if any(path.is_relative_to(hidden) for hidden in HIDDEN):
        raise UsageError(
            "the service cannot see this Python: it has a /tmp of its own",
            where=python,
            field="python",
            hint=hint,
        )
    for folder in path.parents:
        if not folder.stat().st_mode & 0o001:
            raise UsageError(
                f"the service's user cannot reach this Python: {folder} is closed to others",
                where=python,
                field="python",
                hint=hint,
            )
