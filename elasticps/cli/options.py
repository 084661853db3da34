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

from elasticps.api.strategy_choice import joined
from elasticps.cli.answers import Submission
from elasticps.core.blocks import DEFAULT_BLOCK_BYTES, MAX_BLOCK_BYTES, MIN_BLOCK_BYTES
from elasticps.core.chosen import DEFAULT_CODEC, DEFAULT_STRATEGY
from elasticps.core.consistency import MAX_REPLICAS, Consistency, NonFinite, check_guarantees
from elasticps.errors import UsageError, listed

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
    ca: Path | None = None
    token_file: Path | None = None

    def connect(self) -> Api:
        """The client, to be entered with ``async with``."""
        from elasticps.cli.client import Api

        return Api(self.api, ca=self.ca, token=self._token())

    def _token(self) -> str | None:
        if self.token_file is None:
            return None
        from elasticps.security.files import read_word

        if not self.api.startswith("https://"):
            raise UsageError(
                "a token is not sent where others may read it",
                where=self.api,
                field="api",
                limit="https://host:port",
            )
        return read_word(self.token_file, "token_file")


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


def age(text: str) -> float:
    """The type of an option: seconds, or a number with s, m, h or d."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text)
    if match is None:
        raise click.BadParameter(f"{text!r} is not an age (limit: a number with s, m, h or d)")
    return float(match[1]) * {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}[match[2]]


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


def block_bytes_option(command: Command) -> Command:
    return click.option(
        "--block-bytes",
        type=block_size,
        metavar="BYTES",
        default=f"{DEFAULT_BLOCK_BYTES >> 20}MiB",
        show_default=True,
        help="The largest block, the unit that is placed and moved.",
    )(command)


def waiting_option(command: Command) -> Command:
    return click.option(
        "--timeout",
        "timeout_s",
        type=seconds,
        metavar="SECONDS",
        help="Give up waiting after this long.",
    )(command)


def job_options(command: Command) -> Command:
    """What ``run`` and ``submit`` say of a job."""
    options = (
        click.option(
            "--strategy",
            metavar="[PATTERN=]STRATEGY",
            multiple=True,
            callback=lambda _context, _option, texts: joined(texts),
            default=(DEFAULT_STRATEGY,),
            show_default=True,
            help="How workers exchange what they learn; see `elasticps plugins list`. Several, each"
            " with a PATTERN of parameters' names, share the model: the first that matches counts.",
        ),
        click.option(
            "--data-policy",
            default="dynamic",
            show_default=True,
            help="How workers share the samples of run.data; see `elasticps plugins list`.",
        ),
        click.option(
            "--placement",
            default="balanced",
            show_default=True,
            help="Which servers hold which blocks; see `elasticps plugins list`.",
        ),
        click.option(
            "--codec",
            metavar="CODEC",
            default=DEFAULT_CODEC,
            show_default=True,
            help="What gradients are coded with: int8, ef+top-k:ratio=0.01+int8, ...",
        ),
        click.option(
            "--replicas",
            type=click.IntRange(1, MAX_REPLICAS),
            metavar="N",
            default=2,
            show_default=True,
            help="Copies of each block, each on another node: N - 1 nodes may die at once.",
        ),
        click.option(
            "--min-insync",
            type=click.IntRange(1, MAX_REPLICAS),
            metavar="N",
            default=1,
            show_default=True,
            help="Go on only while each block has this many copies that are up to date.",
        ),
        click.option(
            "--consistency",
            type=click.Choice([choice.value for choice in Consistency]),
            callback=lambda _context, _option, text: Consistency(text),
            default=Consistency.SYNC.value,
            show_default=True,
            help="Workers go in step, at most the staleness apart, or each at its own pace.",
        ),
        click.option(
            "--staleness",
            type=click.IntRange(min=0),
            metavar="ROUNDS",
            default=0,
            show_default=True,
            help="How far ahead of the slowest worker one may be; for bounded.",
        ),
        click.option(
            "--backup-workers",
            type=click.IntRange(0, MAX_WORKERS),
            metavar="N",
            default=0,
            show_default=True,
            help="Do not wait for the N slowest workers of a round; for sync.",
        ),
        click.option(
            "--nonfinite",
            type=click.Choice([choice.value for choice in NonFinite]),
            callback=lambda _context, _option, text: NonFinite(text),
            default=NonFinite.APPLY.value,
            show_default=True,
            help="Apply gradients with a NaN or an infinity, as torch does, or refuse the push:"
            " its worker fails. Both are counted.",
        ),
        click.option(
            "--checkpoint-dir",
            metavar="DIR",
            callback=_folder,
            help="Where checkpoints are written, which every node must reach: a folder, or a URL"
            " (s3://...) with elasticps[remote].",
        ),
        click.option(
            "--checkpoint-every",
            type=click.IntRange(min=0),
            metavar="ROUNDS",
            default=0,
            show_default=True,
            help="Write one every so many rounds; 0: on demand alone.",
        ),
        click.option(
            "--checkpoint-keep",
            type=click.IntRange(min=1),
            metavar="N",
            default=3,
            show_default=True,
            help="How many of them stay: the newest.",
        ),
        click.option(
            "--resume", metavar="DIR", callback=_folder, help="Begin with the checkpoint in DIR."
        ),
        click.option(
            "--resume-reset-optimizer",
            is_flag=True,
            help="With --resume: leave the optimizer's state there, and begin with none, whichever"
            " the job's optimizer is.",
        ),
        block_bytes_option,
        click.option(
            "--audit",
            is_flag=True,
            help="Count pushes: each worker that ends in order holds those that it was told were"
            " applied against what the blocks applied. One that is killed is named as not counted.",
        ),
    )
    for option in reversed(options):
        command = option(command)
    return command


def _folder(_context: click.Context, option: click.Parameter, text: str | None) -> str:
    """An absolute path; empty where the option was not given."""
    if text == "":
        raise click.BadParameter(f"{option.opts[0]} without a folder (limit: a path)")
    if text is None:
        return ""
    if "://" in text and not text.startswith("file://"):
        return text
    path = Path(text.removeprefix("file://")).absolute()
    # Links stay as they are: what they lead to here may be elsewhere on another machine.
    return str(path.resolve() if ".." in path.parts else path)


def check_job(submission: Submission) -> None:
    """Raise UsageError for options that do not go together; warn where one death is the end."""
    check_guarantees(submission, submission.start_workers)
    if submission.replicas == 1:
        click.echo(
            "warning: 1 copy of each block: a node that dies takes the job with it"
            " (--replicas 2 survives that)",
            err=True,
        )


def require_known(kind: str, name: str, known: Iterable[str]) -> None:
    """Raise UsageError, with the known names and the nearest, unless ``name`` is one of them."""
    names = sorted(known)
    if name in names:
        return
    near = difflib.get_close_matches(name, names, n=1)
    raise UsageError(
        f"the cluster has no {kind} {name!r}",
        field=kind,
        limit=listed(names) or f"there is no {kind} at all",
        hint=f"did you mean {near[0]}?" if near else None,
    )
