"""What the commands share: the types of their options, the API to ask, and their event loop."""

from __future__ import annotations

import asyncio
import difflib
import math
import re
import signal
from collections.abc import Callable, Coroutine, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar
from urllib.parse import urlsplit

import click

from elasticps.core.blocks import DEFAULT_BLOCK_BYTES, MAX_BLOCK_BYTES, MIN_BLOCK_BYTES
from elasticps.core.records import MAX_REPLICAS
from elasticps.errors import UsageError

if TYPE_CHECKING:  # aiohttp takes longer to import than all the rest
    from elasticps.cli.client import Api

DEFAULT_API = "http://127.0.0.1:7400"
MAX_WORKERS = 1024

Result = TypeVar("Result")
Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The options of the group, before the command's name."""

    api: str

    def connect(self) -> Api:
        """The client, to be entered with ``async with``."""
        from elasticps.cli.client import Api

        return Api(self.api)


def run_async(main: Coroutine[Any, Any, Result]) -> Result:
    """Run a command to its end.

    The first SIGINT or SIGTERM cancels it, so that it can tidy up, which the later ones do not
    disturb; it ends with the shell's exit code for that signal, 130 or 143.
    """
    caught: list[int] = []

    async def body() -> Result:
        task = asyncio.current_task()
        assert task is not None
        running = task

        def stop(number: int) -> None:
            if not caught:
                caught.append(number)
                running.cancel()

        for number in (signal.SIGINT, signal.SIGTERM):
            asyncio.get_running_loop().add_signal_handler(number, stop, number)
        return await main

    try:
        return asyncio.run(body())
    except asyncio.CancelledError:
        if not caught:
            raise
        raise click.exceptions.Exit(128 + caught[0]) from None


def api_url(text: str) -> str:
    """The type of an option: the base of the API, "http://host:port"."""
    try:
        parts = urlsplit(text)
        port = parts.port
    except ValueError:
        raise click.BadParameter(f"the port of {text!r} is no port (limit: 1 to 65535)") from None
    extra = parts.path.strip("/") or parts.query or parts.fragment or parts.username
    if parts.scheme not in ("http", "https") or not parts.hostname or extra or port == 0:
        raise click.BadParameter(f"{text!r} is not the URL of an API (limit: http://host:port)")
    return f"{parts.scheme}://{parts.netloc}"


def seconds(text: str) -> float:
    """The type of an option: a time to wait, finite and more than 0."""
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value < math.inf:
        raise click.BadParameter(f"{text!r} is not a time to wait (limit: more than 0 s)")
    return value


def block_size(text: str) -> int:
    """The type of an option: a block's bytes, or a number with KiB or MiB."""
    units = {"": 1, "KiB": 1 << 10, "MiB": 1 << 20}
    match = re.fullmatch("([0-9]{1,15}) ?(|KiB|MiB)", text)
    size = int(match[1]) * units[match[2]] if match else -1
    if not MIN_BLOCK_BYTES <= size <= MAX_BLOCK_BYTES:
        limit = f"{MIN_BLOCK_BYTES >> 10}KiB to {MAX_BLOCK_BYTES >> 20}MiB"
        raise click.BadParameter(f"{text!r} is not the size of a block (limit: {limit})")
    return size


def json_option(command: Command) -> Command:
    return click.option("--json", "as_json", is_flag=True, help="Print one JSON document.")(command)


def script_argument(command: Command) -> Command:
    """SCRIPT and its ARGS: everything behind SCRIPT is the script's."""
    script = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
    command = click.argument("args", nargs=-1, type=click.UNPROCESSED)(command)
    return click.argument("script", type=script)(command)


def job_options(command: Command) -> Command:
    """What ``run`` and ``submit`` say of a job."""
    options = (
        click.option(
            "--strategy",
            default="data-parallel",
            show_default=True,
            help="How workers exchange what they learn; see `elasticps plugins list`.",
        ),
        click.option(
            "--replicas",
            type=click.IntRange(1, MAX_REPLICAS),
            default=1,
            show_default=True,
            help="Copies of each block. This version keeps one.",
        ),
        click.option(
            "--block-bytes",
            type=block_size,
            metavar="BYTES",
            default=f"{DEFAULT_BLOCK_BYTES >> 20}MiB",
            show_default=True,
            help="The largest block, the unit that is placed and moved.",
        ),
        click.option(
            "--audit", is_flag=True, help="Count every push, to prove that none is lost or doubled."
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def require_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise UsageError, with the known names and the nearest, unless ``name`` is one of them."""
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    raise UsageError(
        f"the cluster has no {kind} {name!r}",
        field=kind,
        limit=", ".join(names) or f"there is no {kind} at all",
        hint=f"did you mean {near[0]}?" if near else None,
    )
