"""What a machine is and has, for ``elasticps doctor``: read here, judged there."""

from __future__ import annotations

import datetime
import os
import platform
import resource
import shutil
import time
from collections.abc import Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import msgspec

from elasticps.api.plugins import GROUPS, discover

SHARED_MEMORY = Path("/dev/shm")  # noqa: S108 - its size is the question
RDMA = Path("/sys/class/infiniband")
UNLIMITED = -1


class Space(msgspec.Struct, frozen=True, kw_only=True):
    """A file system's bytes."""

    total: int
    free: int


class MachineFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One machine. ``unix_s`` is its wall clock; limits are this process's, UNLIMITED where none.

    ``shared_memory`` is that of /dev/shm; ``folders`` are those of state and logs, by setting.
    ``certificate_until`` is when the node's certificate ends, in Unix seconds. ``plugins`` are
    "group/name distribution version".
    """

    unix_s: float
    elasticps: str
    python: str
    torch: str
    plugins: tuple[str, ...]
    open_files: int
    locked_bytes: int
    has_rdma: bool
    shared_memory: Space | None
    folders: dict[str, Space]
    certificate_until: float | None = None


def machine_facts(folders: Mapping[str, Path], certificate: Path | None) -> MachineFacts:
    """Of the machine and process that asks. Reads files, and imports no plugin and no torch."""
    return MachineFacts(
        unix_s=time.time(),
        elasticps=_version("elasticps"),
        python=platform.python_version(),
        torch=_version("torch"),
        plugins=tuple(
            f"{each.group.removeprefix('elasticps.')}/{each.name} {each.distribution}"
            f" {each.version}"
            for group in GROUPS
            for each in discover(group)
        ),
        open_files=_limit(resource.RLIMIT_NOFILE),
        locked_bytes=_limit(resource.RLIMIT_MEMLOCK),
        has_rdma=RDMA.is_dir() and any(RDMA.iterdir()),
        shared_memory=_space(SHARED_MEMORY) if SHARED_MEMORY.is_dir() else None,
        folders={key: _space(_existing(path)) for key, path in folders.items()},
        certificate_until=until(certificate) if certificate else None,
    )


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return ""


def _limit(which: int) -> int:
    soft = resource.getrlimit(which)[0]
    return UNLIMITED if soft == resource.RLIM_INFINITY else soft


def _space(path: Path) -> Space:
    found = shutil.disk_usage(path)
    return Space(total=found.total, free=found.free)


def _existing(path: Path) -> Path:
    """The folder, or the one in which it would be made."""
    return next((each for each in (path, *path.parents) if os.access(each, os.F_OK)), Path("/"))


def until(certificate: Path) -> float | None:
    """When it ends, in Unix seconds; None where it cannot be read."""
    from cryptography import x509

    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
    except (OSError, ValueError):
        return None
    return found.not_valid_after_utc.astimezone(datetime.UTC).timestamp()
