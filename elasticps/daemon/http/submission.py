"""What is asked for with a new job, and what of it is refused before anything is started."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Annotated

import msgspec

from elasticps.core.blocks import DEFAULT_BLOCK_BYTES, MAX_BLOCK_BYTES, MIN_BLOCK_BYTES
from elasticps.core.consistency import Guarantees, check_guarantees, documented, in_range
from elasticps.daemon.chosen import check_chosen, check_places
from elasticps.errors import UsageError

NAME = re.compile(r"[a-z0-9][a-z0-9-]{0,39}")
MAX_WORKERS = 10_000
MAX_WORD_BYTES = 128 * 1024 - 1
"""Linux's own limit on one argument or variable of a process (MAX_ARG_STRLEN)."""
MAX_COMMAND_BYTES = 512 * 1024
"""Of all arguments and variables: less than Linux takes, and than fits into etcd."""

OURS = re.compile("LD_.*|ELASTICPS_.*")
"""Variables that the dynamic loader and elasticps's own code obey, before the script begins."""
PYTHONS = re.compile("PYTHON.*")
SCRIPTS_OWN = (
    "PYTHONDEVMODE",
    "PYTHONDONTWRITEBYTECODE",
    "PYTHONFAULTHANDLER",
    "PYTHONHASHSEED",
    "PYTHONIOENCODING",
    "PYTHONPATH",
    "PYTHONTRACEMALLOC",
    "PYTHONUTF8",
    "PYTHONWARNINGS",
)
"""Those of Python's that a script may need, and that leave a worker's start as it is."""


class JobBody(Guarantees, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A job: ``argv`` is the script and its arguments, ``cwd`` the folder that it begins in.

    Both have to be on every node that runs workers. ``env`` is added to the daemon's own.
    """

    argv: Annotated[tuple[str, ...], msgspec.Meta(extra_json_schema={"minItems": 1})]
    cwd: str
    name: (
        Annotated[str, msgspec.Meta(extra_json_schema={"pattern": f"^{NAME.pattern}$"})] | None
    ) = None
    env: dict[str, str] = msgspec.field(default_factory=dict)
    start_workers: Annotated[int, documented(1, MAX_WORKERS)] = 1
    max_workers: Annotated[int, documented(1, MAX_WORKERS)] = MAX_WORKERS
    block_bytes: Annotated[int, documented(MIN_BLOCK_BYTES, MAX_BLOCK_BYTES)] = DEFAULT_BLOCK_BYTES
    audit: bool = False


def check_submission(body: JobBody) -> None:
    """Raises UsageError that names the field and its limit."""
    if body.name is not None and not NAME.fullmatch(body.name):
        raise UsageError(f"{body.name!r} is no job name", field="name", limit=NAME.pattern)
    _check_command(body)
    _check_environment(body)
    _check_place(body)
    in_range("start_workers", body.start_workers, 1, MAX_WORKERS)
    in_range("max_workers", body.max_workers, body.start_workers, MAX_WORKERS)
    check_guarantees(body, body.start_workers)
    in_range("block_bytes", body.block_bytes, MIN_BLOCK_BYTES, MAX_BLOCK_BYTES)
    check_chosen(body)
    check_places(body)


def _check_command(body: JobBody) -> None:
    if not body.argv or not body.argv[0] or any("\0" in word for word in body.argv):
        raise UsageError(
            "argv is the script and its arguments",
            field="argv",
            limit="at least one word, without NUL",
        )
    _check_sizes("argv", body.argv)


def _check_environment(body: JobBody) -> None:
    for key, value in body.env.items():
        if not key or "=" in key or "\0" in key + value:
            raise UsageError(
                f"{key!r} is no environment variable", field="env", limit="NAME=VALUE, without NUL"
            )
        # Empty, it takes away what the daemon itself has.
        if value and (OURS.fullmatch(key) or (PYTHONS.fullmatch(key) and key not in SCRIPTS_OWN)):
            raise UsageError(
                f"{key} changes how elasticps's own code runs",
                field="env",
                limit="no LD_*, ELASTICPS_*, nor PYTHON* but " + ", ".join(SCRIPTS_OWN),
                hint="set it for the daemon, or in the script for what the script starts",
            )
    _check_sizes("env", [f"{key}={value}" for key, value in body.env.items()])


def _check_sizes(field: str, words: list[str] | tuple[str, ...]) -> None:
    """What no process could be started with."""
    sizes = [len(word.encode(errors="surrogatepass")) for word in words]
    if max(sizes, default=0) > MAX_WORD_BYTES:
        limit = f"{MAX_WORD_BYTES} bytes in one"
        raise UsageError(f"{max(sizes)} bytes in one of {field}", field=field, limit=limit)
    if sum(sizes) > MAX_COMMAND_BYTES:
        limit = f"{MAX_COMMAND_BYTES} bytes together"
        raise UsageError(f"{field} has {sum(sizes)} bytes", field=field, limit=limit)


def _check_place(body: JobBody) -> None:
    """The folder and the script are there, on this node at least.

    A script that is given relative to the folder lies in it, when links are followed too. One by
    its absolute path may lie anywhere: who may submit may run what the worker's user can read.
    """
    folder, script = Path(body.cwd), Path(body.cwd) / body.argv[0]
    # Of os.path, which says False where pathlib raises: a name too long, a NUL.
    if not folder.is_absolute() or not os.path.isdir(folder):  # noqa: PTH112
        raise UsageError(
            f"{body.cwd!r} is no folder of this node", field="cwd", limit="an absolute path"
        )
    if not Path(body.argv[0]).is_absolute():
        inside = Path(os.path.realpath(folder))
        if not Path(os.path.realpath(script)).is_relative_to(inside):
            raise UsageError(
                f"the script {body.argv[0]!r} leads out of {body.cwd}",
                field="argv",
                limit="a script in cwd, or an absolute path",
            )
    if not os.path.isfile(script):  # noqa: PTH113
        raise UsageError(f"there is no script {script} on this node", field="argv", limit="a file")
