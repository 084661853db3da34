"""The status as it changes, and the cluster's timeline: ``status --watch`` and ``events``."""

from __future__ import annotations

import asyncio
import contextlib
import io
import os
import shutil
import sys
import time
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar

import click
import msgspec

from elasticps.cli.answers import Event, Status
from elasticps.cli.options import Settings, require_known, run_async
from elasticps.cli.output import print_answer, print_json, printable
from elasticps.errors import ElasticError, PeerUnavailable

if TYPE_CHECKING:
    from elasticps.cli.client import Api
    from elasticps.cli.frames import Frame

Answer = TypeVar("Answer")

RETRY_S = 0.5
MOST_EVENTS = 1000
_COLOURS = {"warning": "yellow", "error": "red"}
_CLEAR, _HOME, _END_OF_LINE, _BELOW = "\x1b[2J", "\x1b[H", "\x1b[K\n", "\x1b[J"


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with what happens from now on.")
@click.option(
    "-n",
    "--last",
    type=click.IntRange(0, MOST_EVENTS),
    default=100,
    show_default=True,
    help="Begin with so many events of the past.",
)
@click.option("--job", help="Only what is about this job.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON document a line.")
@click.pass_obj
def events(settings: Settings, follow: bool, last: int, job: str | None, as_json: bool) -> None:
    """Print what has happened in the cluster: who joined and left, failovers, moves, jobs.

    It is what the daemon that is asked has seen since it started.

    \b
    Example:
      elasticps events
      elasticps events -f --job mnist
      elasticps events --json | jq 'select(.severity == "error")'

    \b
    Exit codes:
      0    printed
      1    the cluster cannot be reached, or its stream was lost for 30 s
      2    no such job; with -f it is waited for
    """

    async def show() -> None:
        async with settings.connect() as api:
            page = await api.events(limit=max(1, last), job=job)
            if job is not None and not page.events:
                await _require_job(api, job, may_come=follow)
            for event in page.events if last else ():
                _print_event(event, as_json=as_json)
            if not follow:
                return
            async for frame in followed(api, job=job, after=page.next):
                if frame.event == "event":
                    _print_event(_decoded(frame.data, Event, api.url), as_json=as_json)
                elif frame.event == "missed":
                    click.echo("(earlier events may be missing here)", err=True)

    run_async(show())


async def _require_job(api: Api, job: str, *, may_come: bool) -> None:
    known = await api.job_names()
    if not may_come:
        require_known("job", job, known)
    elif job not in known:
        click.echo(f"there is no job {printable(job)} yet", err=True)


def watch_status(settings: Settings, *, as_json: bool) -> None:
    """Print the status now and whenever it changes, until interrupted.

    A terminal shows the newest in place; elsewhere there is a blank line between two, and as JSON
    each is one line.
    """

    async def show() -> None:
        page = _Page() if _is_live() and not as_json else None
        first = True
        async with settings.connect() as api:
            async for frame in followed(api):
                if frame.event != "status":
                    continue
                status = _decoded(frame.data, Status, api.url)
                if page is not None:
                    page.draw(status)
                elif as_json:
                    print_json(status, indent=0)
                else:
                    click.echo("" if first else "\n", nl=False)
                    print_answer(status, as_json=False)
                first = False
                sys.stdout.flush()

    run_async(show())


async def followed(
    api: Api, *, job: str | None = None, after: str | None = None
) -> AsyncIterator[Frame]:
    """The stream's frames, of one connection after the other, without a gap or a repeat.

    Raises what the first connection meets at once, and PeerUnavailable when the same daemon does
    not answer any more for as long as an outage may last.
    """
    from elasticps.cli.client import PATIENCE_S

    heard: float | None = None
    while True:
        try:
            async with contextlib.aclosing(api.stream(job=job, after=after)) as frames:
                async for frame in frames:
                    heard, after = time.monotonic(), frame.id or after
                    yield frame
        except PeerUnavailable:
            if heard is None or time.monotonic() - heard > PATIENCE_S:
                raise
        await asyncio.sleep(RETRY_S)


class _Page:
    """A terminal's screen, drawn over from its top."""

    def __init__(self) -> None:
        self._drawn = False

    def draw(self, status: Status) -> None:
        text = _Text()
        with contextlib.redirect_stdout(text):
            print_answer(status, as_json=False)
        room = max(1, shutil.get_terminal_size().lines - 1)
        lines = text.getvalue().splitlines()[:room]
        clear = "" if self._drawn else _CLEAR
        self._drawn = True
        body = "".join(line + _END_OF_LINE for line in lines)
        sys.stdout.write(clear + _HOME + body + _BELOW)


class _Text(io.StringIO):
    """Text that is meant for a terminal, colours and all."""

    def isatty(self) -> bool:
        return True


def _is_live() -> bool:
    return sys.stdout.isatty() and os.environ.get("TERM") != "dumb"


def _print_event(event: Event, *, as_json: bool) -> None:
    if as_json:
        print_json(event, indent=0)
    else:
        at = datetime.fromtimestamp(event.unix_s, UTC).astimezone().strftime("%Y-%m-%d %H:%M:%S")
        line = f"{at}  {event.kind:<10} {event.what}"
        click.secho(printable(line), fg=_COLOURS.get(event.severity))
    sys.stdout.flush()


def _decoded(text: str, kind: type[Answer], url: str) -> Answer:
    try:
        return msgspec.json.decode(text, type=kind)
    except msgspec.MsgspecError as error:
        raise ElasticError(
            f"the stream is not understood: {error}",
            where=url,
            hint="does --api name a daemon of this version of elasticps?",
        ) from None
