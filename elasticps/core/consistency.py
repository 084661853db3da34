"""What a job is promised: how many copies, how far apart its workers, what outlives a disaster."""

from __future__ import annotations

from enum import StrEnum
from pathlib import PurePosixPath
from typing import Annotated

import msgspec

from elasticps.core.chosen import Chosen
from elasticps.errors import UsageError

URL = "://"
"""What is in a URL, and in no path."""
MAX_REPLICAS = 7
MAX_ROUNDS = 1_000_000_000


def documented(least: int, most: int) -> msgspec.Meta:
    """A field's range, for schemas: the check of it is elsewhere, with an error that names both."""
    return msgspec.Meta(extra_json_schema={"minimum": least, "maximum": most})


class Consistency(StrEnum):
    """``SYNC``: whole rounds, all workers in step. ``BOUNDED``: no worker is more than the job's
    staleness ahead of the slowest. ``ASYNC``: nobody waits for anybody.
    """

    SYNC = "sync"
    BOUNDED = "bounded"
    ASYNC = "async"


class NonFinite(StrEnum):
    """What a server does with a gradient that has a NaN or an infinity in it, beside counting it.

    ``APPLY``: what torch does. ``REFUSE``: that push alone changes nothing, and its worker fails.
    """

    APPLY = "apply"
    REFUSE = "refuse"


class Guarantees(Chosen, frozen=True, kw_only=True):
    """The part of a job's spec that says what it can survive, and what it waits for.

    ``replicas`` are the copies wanted of each block, ``min_insync`` how many must hold an op before
    it is acknowledged. ``staleness`` counts rounds and goes with ``bounded``; ``backup_workers``
    are the slowest ones, which a round does not wait for, and go with ``sync``.
    ``nonfinite`` is about gradients with a NaN or an infinity.
    ``checkpoint_every`` counts rounds, 0 means on demand alone; of those made the newest
    ``checkpoint_keep`` stay; ``resume`` is the checkpoint to
    begin with, of which ``resume_reset_optimizer`` leaves the optimizer's state.
    """

    replicas: Annotated[int, documented(1, MAX_REPLICAS)] = 2
    min_insync: Annotated[int, documented(1, MAX_REPLICAS)] = 1
    consistency: Consistency = Consistency.SYNC
    staleness: Annotated[int, documented(0, MAX_ROUNDS)] = 0
    backup_workers: Annotated[int, documented(0, MAX_ROUNDS)] = 0
    nonfinite: NonFinite = NonFinite.APPLY
    checkpoint_dir: str = ""
    checkpoint_every: Annotated[int, documented(0, MAX_ROUNDS)] = 0
    checkpoint_keep: Annotated[int, documented(1, MAX_ROUNDS)] = 3
    resume: str = ""
    resume_reset_optimizer: bool = False


def check_guarantees(wanted: Guarantees, start_workers: int) -> None:
    """Raise UsageError, naming field and limit, for what cannot be promised to such a job."""
    in_range("replicas", wanted.replicas, 1, MAX_REPLICAS)
    in_range("min_insync", wanted.min_insync, 1, wanted.replicas)
    in_range("staleness", wanted.staleness, 0, MAX_ROUNDS)
    if wanted.staleness and wanted.consistency is not Consistency.BOUNDED:
        raise UsageError(
            f"staleness of {wanted.staleness} in {wanted.consistency.value} consistency",
            field="staleness",
            limit="0 unless the consistency is bounded",
        )
    if not 0 <= wanted.backup_workers < start_workers:
        raise UsageError(
            f"backup_workers of {wanted.backup_workers}",
            field="backup_workers",
            limit=f"at least 0, and fewer than the {start_workers} workers to start with",
        )
    if wanted.backup_workers and wanted.consistency is not Consistency.SYNC:
        raise UsageError(
            f"backup_workers of {wanted.backup_workers} in {wanted.consistency.value} consistency",
            field="backup_workers",
            limit="0 unless the consistency is sync",
        )
    in_range("checkpoint_every", wanted.checkpoint_every, 0, MAX_ROUNDS)
    in_range("checkpoint_keep", wanted.checkpoint_keep, 1, MAX_ROUNDS)
    if wanted.checkpoint_every and not wanted.checkpoint_dir:
        raise UsageError(
            "checkpoints are asked for, and no place for them",
            field="checkpoint_dir",
            limit="an absolute path, or a URL",
        )
    if wanted.resume_reset_optimizer and not wanted.resume:
        raise UsageError(
            "an optimizer is to be reset, and no checkpoint has the state of one",
            field="resume_reset_optimizer",
            limit="false unless there is resume",
        )
    for field in ("checkpoint_dir", "resume"):
        _check_path(field, getattr(wanted, field))


def in_range(field: str, number: int, least: int, most: int) -> None:
    """Raise UsageError unless ``least <= number <= most``."""
    if not least <= number <= most:
        raise UsageError(f"{field} of {number}", field=field, limit=f"{least} to {most}")


def _check_path(field: str, path: str) -> None:
    if URL in path:
        _check_url(field, path)
        return
    parts = PurePosixPath(path).parts
    if path and ("\0" in path or ".." in parts or not path.startswith("/")):
        raise UsageError(
            f"{field} of {path!r}",
            field=field,
            limit='an absolute path without ".." in it, or a URL',
        )


def _check_url(field: str, url: str) -> None:
    """Raise UsageError, without the URL where it has a password, which no log may show."""
    protocol, _, rest = url.partition(URL)
    host = rest.partition("/")[0]
    if ":" in host.rpartition("@")[0] or set("?#") & set(rest):
        raise UsageError(
            f"{field} is a URL with a password or options in it",
            field=field,
            limit="a URL without them",
            hint="put credentials into each machine's environment, or fsspec's configuration",
        )
    plain = protocol.replace("+", "").replace("-", "")
    known = (protocol == "file" and rest.startswith("/")) or (protocol != "file" and host)
    if not (plain.isalnum() and plain.isascii() and known) or ".." in rest.split("/"):
        raise UsageError(
            f"{field} of {url!r}",
            field=field,
            limit='a URL as s3://bucket/folder, without ".." in it',
        )
    if "\0" in url or "::" in url:
        raise UsageError(f"{field} of {url!r}", field=field, limit="a URL of one protocol")
