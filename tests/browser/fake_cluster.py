"""A fake cluster of a thousand nodes behind the real dashboard: every answer of its API is made up.

What a real cluster shows is ``test_live.py``'s; no machine here can run a thousand daemons.
"""

from __future__ import annotations

import asyncio
import json
import math
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

from aiohttp import web
from aiohttp.typedefs import Handler

from elasticps.daemon.http.dashboard import DashboardRoutes
from tests.support.fake_api import Json, job, node

BLOCK_BYTES = 4 << 20
POINTS = 1500
LOOK_S = 0.5


class FakeCluster:
    """``async with serving(FakeCluster(...)) as url``. A job named llm has all the blocks.

    ``role`` is what whoami answers; where ``token`` is given, who does not show it gets 401.
    """

    def __init__(
        self, nodes: int = 1000, blocks: int = 100_000, *, role: str = "admin", token: str = ""
    ) -> None:
        self.role = role
        self.token = token
        self.asked: list[tuple[str, str]] = []
        self.began = time.time() - POINTS
        self.names = [f"node-{number:04}" for number in range(nodes)]
        self.homes = [self._home(block) for block in range(blocks)]
        self.nodes = {name: self._node(number) for number, name in enumerate(self.names)}
        self.learners: dict[int, str] = {}
        self.events: list[Json] = []
        self.jobs = {"llm": self._job(nodes, blocks), "digits": _small_job(self.began)}
        self._changed = asyncio.Event()
        for number in range(0, nodes, max(1, nodes // 40)):
            at = self.began + POINTS * number / nodes
            self.tell("join", self.names[number], f"node {self.names[number]} joined", at=at)
        self.tell("checkpoint", None, "llm saved round 1000", job="llm", at=self.began + 700)

    # -- what happens to it -----------------------------------------------------------------------

    def tell(
        self,
        kind: str,
        node: str | None,
        what: str,
        *,
        severity: str = "info",
        job: str | None = None,
        at: float | None = None,
    ) -> None:
        self.events.append(
            {
                "id": f"0badcafe-{len(self.events) + 1}",
                "unix_s": time.time() if at is None else at,
                "kind": kind,
                "node": node,
                "job": job,
                "job_key": self.jobs[job]["key"] if job else None,
                "what": what,
                "severity": severity,
            }
        )
        self._change()

    def submit_again(self, name: str) -> None:
        """The job is forgotten, and another gets its name."""
        key = self.jobs[name]["key"] + 1
        self.jobs[name] = job(name, key=key, submitted_unix=time.time(), workers=[])
        self.tell("job", None, f"{name} submitted: train.py", job=name)

    def lose(self, name: str) -> None:
        """A node goes, and others lead its blocks."""
        del self.nodes[name]
        names = [each for each in self.names if each in self.nodes]
        for block, (primary, backup) in enumerate(self.homes):
            if name in (primary, backup):
                kept = backup if primary == name else primary
                spare = names[block % len(names)]
                self.homes[block] = (kept, spare if spare != kept else names[block % 2])
        self.jobs["llm"]["movement"]["blocks"] += 200
        self.tell("leave", name, f"node {name} left: killed", severity="warning")
        self.tell("failover", name, "backups lead its blocks", severity="warning", job="llm")

    def moves(self, block: int, target: str) -> None:
        """A learner of the block is on its way to a node."""
        self.learners[block] = target
        self._counted()

    def arrives(self, block: int) -> None:
        """The learner leads the block now; the old primary is dropped."""
        self.homes[block] = (self.learners.pop(block), self.homes[block][1])
        self._counted()

    def _counted(self) -> None:
        self.jobs["llm"]["pending_moves"] = len(self.learners)
        self.jobs["llm"]["movement"]["blocks"] += 1
        self._change()

    def _change(self) -> None:
        changed, self._changed = self._changed, asyncio.Event()
        changed.set()

    # -- what it is -------------------------------------------------------------------------------

    def _home(self, block: int) -> tuple[str, str]:
        count = len(self.names)
        primary = block % count
        backup = (primary + 1 + (block // count) % max(1, count - 1)) % count
        return self.names[primary], self.names[backup]

    def _node(self, number: int) -> Json:
        held = sum(self.names[number] in home for home in self.homes[:: max(1, len(self.names))])
        return node(
            self.names[number],
            leader=number == 3,
            zone=f"zone-{number % 4 + 1}",
            leads=len(self.homes) // len(self.names),
            replicas=2 * len(self.homes) // len(self.names),
            bytes_held=(180 + held + number * 37 % 50) * BLOCK_BYTES,
            reachable=number % 397 != 11,
            state="draining" if number % 499 == 7 else "ready",
        )

    def _job(self, nodes: int, blocks: int) -> Json:
        workers = [
            {
                "uid": f"{name}.1",
                "node": name,
                "state": "running",
                "rank": rank,
                "round": 1460 if rank % 450 == 17 else 1500,
                "reason": "",
            }
            for rank, name in enumerate(self.names)
        ]
        return job(
            "llm",
            blocks=blocks,
            workers=workers,
            round=1500,
            step_s=0.4,
            metrics={"loss": 2.31, "accuracy": 0.52},
            under_replicated=12 if nodes > 1 else 0,
            pending_moves=31,
            owner="alice",
            submitted_unix=self.began,
            consistency="bounded",
        )

    def _points(self, name: str, since: float) -> list[Json]:
        points = []
        for number in range(POINTS):
            at = self.began + number
            if at <= since:
                continue
            dip = 0.4 if 700 < number < 715 else 1.0
            points.append(
                {
                    "unix_s": at,
                    "round": number,
                    "metrics": {
                        "loss": 2 + 6 * math.exp(-number / 250) + 0.05 * math.sin(number * 2.1),
                        "accuracy": 0.55 - 0.5 * math.exp(-number / 300),
                    },
                    "rounds_per_s": dip * (2.5 + 0.2 * math.sin(number / 9)),
                    "pushed_bytes_per_s": dip * 6.1e9,
                    "workers": len(self.names) - (number > 700),
                    "staleness": 2 + (number % 90 < 3),
                }
            )
        return points if name == "llm" else points[: POINTS // 2]

    def held(self, name: str) -> list[int]:
        return [block for block, home in enumerate(self.homes) if name in home]

    # -- the API ----------------------------------------------------------------------------------

    def application(self) -> web.Application:
        app = web.Application(middlewares=[self._guarded])
        app.router.add_routes(
            route for route in DashboardRoutes().routes() if route.path != "/api/v1/whoami"
        )
        answers: dict[str, Callable[[web.Request], Any]] = {
            "whoami": lambda _: {"role": self.role, "name": "alice"},
            "events": self._page_of_events,
            "blocks": self._blocks,
            "jobs/{job}/series": lambda request: {
                "job": request.match_info["job"],
                "points": self._points(
                    request.match_info["job"], float(request.query.get("since", "0"))
                ),
            },
        }
        for path, answer in answers.items():
            app.router.add_get(f"/api/v1/{path}", _json(answer))
        app.router.add_get("/api/v1/stream", self._stream)
        app.router.add_get("/api/v1/jobs/{job}/logs", self._logs)
        app.router.add_route("*", "/api/v1/nodes/{node}/drain", self._drain)
        app.router.add_post("/api/v1/jobs/{job}/cancel", self._cancel)
        return app

    @web.middleware
    async def _guarded(self, request: web.Request, handler: Handler) -> web.StreamResponse:
        self.asked.append((request.method, request.path))
        shown = request.headers.get("Authorization")
        if request.path.startswith("/api/") and self.token and shown != f"Bearer {self.token}":
            return web.json_response({"error": {"what": "a token is needed"}}, status=401)
        return await handler(request)

    def status(self) -> Json:
        return {
            "cluster": "lab",
            "version": "0.1.0",
            "leader": self.names[3 % len(self.names)],
            "nodes": list(self.nodes.values()),
            "jobs": list(self.jobs.values()),
        }

    def _page_of_events(self, _: web.Request) -> Json:
        rows = sorted(self.events, key=lambda row: row["unix_s"])
        return {"events": rows, "next": f"0badcafe-{len(self.events)}"}

    def _blocks(self, request: web.Request) -> Json:
        counts: dict[str, Json] = {
            name: {"primary": 0, "backup": 0, "learner": 0, "bytes": 0} for name in self.nodes
        }
        for primary, backup in self.homes:
            counts[primary]["primary"] += 1
            counts[backup]["backup"] += 1
            counts[primary]["bytes"] += BLOCK_BYTES
            counts[backup]["bytes"] += BLOCK_BYTES
        for name in list(counts)[5::97]:
            counts[name]["learner"] = 15
        answer: Json = {
            "nodes": [{"node": name, "jobs": {"llm": held}} for name, held in counts.items()],
            "blocks": len(self.homes),
        }
        if "limit" in request.query:
            answer |= self._rows(request)
        return answer

    def _rows(self, request: web.Request) -> Json:
        after, limit = int(request.query.get("after", "-1")), int(request.query["limit"])
        held = self.held(request.query["node"]) if "node" in request.query else None
        chosen = [
            block for block in (range(len(self.homes)) if held is None else held) if block > after
        ]
        rows = [
            {
                "block": block,
                "name": f"layers.{block // 1000}.weight",
                "bytes": BLOCK_BYTES,
                "primary": self.homes[block][0],
                "backups": [self.homes[block][1]],
                "learners": [self.learners[block]] if block in self.learners else [],
                "epoch": 1234,
            }
            for block in chosen[:limit]
        ]
        return {"rows": rows, "next": chosen[limit - 1] if len(chosen) > limit else None}

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        last = request.headers.get("Last-Event-ID", "0badcafe-0")
        sent = int(last.rpartition("-")[2])
        await response.write(b"retry: 200\n\n")
        while True:
            changed = self._changed
            for row in self.events[sent:]:
                frame = f"event: event\nid: {row['id']}\ndata: {json.dumps(row)}\n\n"
                await response.write(frame.encode())
            sent = len(self.events)
            frame = f"event: status\ndata: {json.dumps(self.status())}\n\n"
            await response.write(frame.encode())
            await changed.wait()
            await asyncio.sleep(LOOK_S)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(headers={"Content-Type": "application/x-ndjson"})
        await response.prepare(request)
        for number in range(3000):
            name = self.names[number % min(8, len(self.names))]
            row = {
                "node": name,
                "worker": f"{name}.1",
                "stream": "stderr" if number % 50 == 0 else "stdout",
                "text": f"round {number} <b>loss</b> {2 + 100 / (number + 20):.4f}",
            }
            await response.write(json.dumps(row).encode() + b"\n")
        await asyncio.Event().wait()
        return response

    async def _drain(self, request: web.Request) -> web.Response:
        each = self.nodes[request.match_info["node"]]
        each["state"] = "ready" if request.method == "DELETE" else "draining"
        self.tell("drain", each["node"], f"node {each['node']} is {each['state']}")
        return web.json_response(each, status=202)

    async def _cancel(self, request: web.Request) -> web.Response:
        each = self.jobs[request.match_info["job"]]
        each["state"] = "CANCELLED"
        self.tell("job", None, f"job {each['job']} was cancelled", job=each["job"])
        return web.json_response(each, status=202)


def _small_job(began: float) -> Json:
    return job(
        "digits",
        state="FAILED",
        reason="worker node-0002.1 failed",
        owner="bob",
        submitted_unix=began,
        ended_unix=time.time() - 600,
        workers=[],
        failure={
            "node": "node-0002",
            "worker": "node-0002.1",
            "reason": "ZeroDivisionError: division by zero",
            "traceback": "Traceback (most recent call last):\n  ...\nZeroDivisionError",
        },
    )


def _json(answer: Callable[[web.Request], Any]) -> Handler:
    async def handler(request: web.Request) -> web.Response:
        return web.json_response(answer(request))

    return handler


@asynccontextmanager
async def serving(cluster: FakeCluster, port: int = 0) -> AsyncIterator[str]:
    """The URL of its dashboard while in the block."""
    runner = web.AppRunner(cluster.application(), shutdown_timeout=0.1)
    await runner.setup()
    try:
        await web.TCPSite(runner, "127.0.0.1", port).start()
        yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    finally:
        await runner.cleanup()
