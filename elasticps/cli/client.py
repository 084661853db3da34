"""The client of a daemon's HTTP API. No other file of the command line opens a connection."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import secrets
import ssl
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self, TypeVar
from urllib.parse import quote

import aiohttp
import msgspec

from elasticps import __version__
from elasticps.cli.answers import (
    CheckpointAsked,
    Events,
    Forgotten,
    Job,
    JobsPage,
    Line,
    Moves,
    Node,
    NodesPage,
    NodeState,
    Profiled,
    Status,
    StoredCheckpoints,
    Submission,
)
from elasticps.cli.failures import check, decoded, plain_errors
from elasticps.cli.frames import Frame, FrameParser
from elasticps.errors import PeerUnavailable, UsageError

if TYPE_CHECKING:
    from elasticps.daemon.machine_facts import MachineFacts
    from elasticps.daemon.measured_link import MeasuredLink

CONNECT_TIMEOUT_S = 5.0
ANSWER_TIMEOUT_S = 15.0
PATIENCE_S = 30.0
"""How long an outage may last while something is watched: a new leader needs some seconds."""
QUIET_S = 45.0
"""A stream that says nothing for this long is dead: a comment comes every 15 s."""
AGAIN_AFTER_S = (0.2, 1.0, 3.0)
"""What is waited before a request whose answer was lost is sent again, that often at most."""
MAX_LINE_BYTES = 1 << 20  # 64 KiB of text, each character escaped, and its frame

Answer = TypeVar("Answer")


class Api:
    """``async with Api("http://host:port") as api``: one daemon's view of its cluster.

    Raises UsageError for what the daemon refuses (400, 404), PeerUnavailable when it cannot be
    reached or has no leader to ask (503), ElasticError for the rest. A daemon that is gone is
    replaced, for questions that change nothing, by another that ``nodes`` or ``status`` named.
    ``submit`` and ``checkpoint`` are asked again, with a key, and have their effect once.
    ``ca`` is the file of the authority that an https API must be certified by, where the machine
    does not know it; ``token`` goes to such an API alone.
    """

    def __init__(self, url: str, *, ca: Path | None = None, token: str | None = None) -> None:
        self.url = url
        self._ca = ca
        self._token = token
        self._others: tuple[str, ...] = ()

    async def __aenter__(self) -> Self:
        self._session = aiohttp.ClientSession(
            timeout=aiohttp.ClientTimeout(total=ANSWER_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S),
            headers={"User-Agent": f"elasticps/{__version__}", "Accept": "application/json"},
            connector=aiohttp.TCPConnector(ssl=_trust(self._ca) if self._ca else True),
            read_bufsize=MAX_LINE_BYTES,
        )
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self._session.close()

    async def status(self) -> Status:
        status = await self._ask("status", Status)
        self._remember(status.nodes)
        return status

    async def nodes(self) -> tuple[Node, ...]:
        page = await self._ask("nodes", NodesPage)
        nodes = page.nodes
        while page.next is not None:
            page = await self._ask(f"nodes?after={quote(page.next, safe='')}", NodesPage)
            nodes += page.nodes
        self._remember(nodes)
        return nodes

    async def jobs(self, *, state: str | None = None, active: bool = False) -> tuple[Job, ...]:
        """All of them, the oldest first, or those in a state, or those that have not ended."""
        wanted = (f"&state={state}" if state else "") + ("&active=true" if active else "")
        page = await self._ask(f"jobs?after=0{wanted}", JobsPage)
        jobs = page.jobs
        while page.next is not None:
            page = await self._ask(f"jobs?after={quote(page.next, safe='')}{wanted}", JobsPage)
            jobs += page.jobs
        return jobs

    async def job_names(self) -> set[str]:
        """Of all jobs, also of those that ended so long ago that the status leaves them out."""
        status = await self.status()
        jobs = await self.jobs() if status.ended_left_out else status.jobs
        return {job.job for job in jobs}

    async def job(self, job: str) -> Job:
        return await self._ask(f"jobs/{_part(job)}", Job)

    async def drain(self, node: str, *, stay: bool) -> NodeState:
        body = msgspec.json.encode({"stay": stay})
        return await self._call("POST", f"nodes/{_part(node)}/drain", NodeState, body)

    async def restart(self, node: str) -> NodeState:
        return await self._call("POST", f"nodes/{_part(node)}/restart", NodeState)

    async def undrain(self, node: str) -> NodeState:
        return await self._call("DELETE", f"nodes/{_part(node)}/drain", NodeState)

    async def moves(self) -> Moves:
        """What a rebalance would move, without starting it."""
        return await self._ask("rebalance", Moves)

    async def rebalance(self) -> Moves:
        return await self._call("POST", "rebalance", Moves)

    async def submit(self, submission: Submission) -> Job:
        return await self._once("jobs", Job, msgspec.json.encode(submission))

    async def cancel(self, job: str) -> Job:
        return await self._call("POST", f"jobs/{_part(job)}/cancel", Job)

    async def forget(self, job: str) -> Forgotten:
        return await self._call("DELETE", f"jobs/{_part(job)}", Forgotten)

    async def checkpoints(self, job: str) -> StoredCheckpoints:
        return await self._ask(f"jobs/{_part(job)}/checkpoints", StoredCheckpoints)

    async def scale(self, job: str, workers: int) -> Job:
        body = msgspec.json.encode({"workers": workers})
        return await self._call("POST", f"jobs/{_part(job)}/scale", Job, body)

    async def checkpoint(self, job: str) -> CheckpointAsked:
        return await self._once(f"jobs/{_part(job)}/checkpoint", CheckpointAsked)

    async def profile(self, job: str, *, steps: int, wait_s: int) -> tuple[Profiled, bytes]:
        """Record so many steps: what they say, and the whole answer, which is a trace."""
        url = f"{self.url}/api/v1/jobs/{_part(job)}/profile"
        headers = self._proof(url) | {"Content-Type": "application/json"}
        body = msgspec.json.encode({"steps": steps, "wait_s": wait_s})
        patience = aiohttp.ClientTimeout(
            total=wait_s + 4 * ANSWER_TIMEOUT_S, sock_connect=CONNECT_TIMEOUT_S
        )
        with plain_errors(url):
            async with self._session.post(
                url, data=body, headers=headers, timeout=patience, allow_redirects=False
            ) as response:
                await check(response, url)
                document = await response.read()
        return decoded(document, Profiled, url), document

    async def machine(self, node: Node) -> MachineFacts:
        """What the node's own daemon says of its machine."""
        from elasticps.daemon.machine_facts import MachineFacts

        return await self._call("GET", "machine", MachineFacts, base=_url(node))

    async def links(self, node: Node, to: tuple[str, ...], nbytes: int) -> list[MeasuredLink]:
        """From the node to others, measured now; ``nbytes`` 0 asks whether they answer."""
        from elasticps.daemon.measured_link import Links

        body = msgspec.json.encode({"to": to, "bytes": nbytes})
        answer = await self._call("POST", "links", Links, body, base=_url(node))
        return answer.links

    async def lines(
        self, job: str, *, follow: bool, node: Node | None = None
    ) -> AsyncIterator[Line]:
        """What the job's workers, or those of one node, wrote; with ``follow`` until it ends."""
        url = f"{_url(node) if node else self.url}/api/v1/jobs/{_part(job)}/logs"
        url += f"?follow={int(follow)}" + ("&local=1" if node else "")
        endless = aiohttp.ClientTimeout(total=None, sock_connect=CONNECT_TIMEOUT_S)
        with plain_errors(url):
            async with self._session.get(
                url, headers=self._proof(url), timeout=endless, allow_redirects=False
            ) as response:
                await check(response, url)
                async for line in response.content:
                    yield decoded(line, Line, url)

    async def events(self, *, limit: int, job: str | None = None) -> Events:
        """The newest events of the daemon's timeline, oldest first."""
        of_job = f"&job={_part(job)}" if job else ""
        return await self._ask(f"events?limit={limit}{of_job}", Events)

    async def stream(
        self, *, job: str | None = None, after: str | None = None
    ) -> AsyncGenerator[Frame, None]:
        """Events behind ``after`` and the status as it changes, until the connection ends."""
        url = f"{self.url}/api/v1/stream" + (f"?job={_part(job)}" if job else "")
        headers = self._proof(url) | {"Accept": "text/event-stream"}
        if after is not None:
            headers["Last-Event-ID"] = after
        patience = aiohttp.ClientTimeout(
            total=None, sock_connect=CONNECT_TIMEOUT_S, sock_read=QUIET_S
        )
        parser = FrameParser()
        with plain_errors(url):
            async with self._session.get(
                url, headers=headers, timeout=patience, allow_redirects=False
            ) as response:
                await check(response, url)
                async for chunk in response.content.iter_any():
                    for frame in parser.feed(chunk):
                        yield frame

    def _proof(self, url: str) -> dict[str, str]:
        if self._token is None or not url.startswith("https://"):
            return {}
        return {"Authorization": f"Bearer {self._token}"}

    def _remember(self, nodes: tuple[Node, ...]) -> None:
        self._others = tuple(url for url in map(_url, nodes) if url != self.url)

    async def _ask(self, path: str, kind: type[Answer]) -> Answer:
        try:
            return await self._call("GET", path, kind)
        except PeerUnavailable:
            for url in self._others:
                with contextlib.suppress(PeerUnavailable):  # the first one's error is shown
                    answer = await self._call("GET", path, kind, base=url)
                    self.url = url
                    return answer
            raise

    async def _once(self, path: str, kind: type[Answer], body: bytes | None = None) -> Answer:
        """POST, and again where the answer is lost: by its key it has its effect once.

        The daemons that are known take turns; the first one's error is shown.
        """
        key, lost = secrets.token_hex(16), None
        urls = itertools.cycle((self.url, *self._others))
        for pause_s in (0.0, *AGAIN_AFTER_S):
            await asyncio.sleep(pause_s)
            try:
                return await self._call("POST", path, kind, body, base=next(urls), key=key)
            except PeerUnavailable as error:
                lost = lost or error
        assert lost is not None
        raise lost

    async def _call(
        self,
        method: str,
        path: str,
        kind: type[Answer],
        body: bytes | None = None,
        *,
        base: str | None = None,
        key: str | None = None,
    ) -> Answer:
        url = f"{base or self.url}/api/v1/{path}"
        headers = {"Content-Type": "application/json"} if body is not None else {}
        headers |= self._proof(url)
        if key is not None:
            headers["Idempotency-Key"] = key
        with plain_errors(url):
            async with self._session.request(
                method, url, data=body, headers=headers, allow_redirects=False
            ) as response:
                await check(response, url)
                return decoded(await response.read(), kind, url)


async def watch(
    ask: Callable[[], Awaitable[Answer]], *, period_s: float = 0.5, patience_s: float = PATIENCE_S
) -> AsyncGenerator[Answer, None]:
    """Ask for ever, every ``period_s``, and yield the answers.

    Raises PeerUnavailable when nobody answers for ``patience_s``.
    """
    answered = time.monotonic()
    while True:
        try:
            answer = await ask()
        except PeerUnavailable:
            if time.monotonic() - answered > patience_s:
                raise
        else:
            answered = time.monotonic()
            yield answer
        await asyncio.sleep(period_s)


def _trust(ca: Path) -> ssl.SSLContext:
    """That authority's certificates and no others. Raises UsageError."""
    try:
        return ssl.create_default_context(cafile=ca)
    except OSError as error:  # ssl.SSLError is one
        raise UsageError(
            f"not an authority's certificate: {error.strerror or error}",
            where=str(ca),
            field="ca",
            limit="a PEM file",
        ) from None


def _url(node: Node) -> str:
    return node.http if "://" in node.http else f"http://{node.http}"


def _part(name: str) -> str:
    """A name as one part of a path. Raises UsageError for one that would be another path."""
    if name in ("", ".", ".."):
        raise UsageError(f"{name!r} is not a name")
    return quote(name, safe="")
