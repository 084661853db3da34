"""A fake of the daemon's HTTP API: real HTTP on a thread, answers made up by the test."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
from typing import Any, Self

from aiohttp import web

Json = dict[str, Any]


def node(name: str, **changes: Any) -> Json:
    return {
        "node": name,
        "state": "ready",
        "leader": False,
        "http": "127.0.0.1:1",
        "incarnation": "1",
        "machine": "m1",
        "zone": "",
        "labels": {},
        "weight": 1.0,
        "version": "0.1.0",
        "leads": 12,
        "replicas": 24,
        "bytes_held": 100 << 20,
        "bytes_per_s": 0.0,
        "usage": None,
        "workers": [f"{name}.1"],
        "children": [
            {"name": "shard", "pid": 4711, "state": "running", "restarts": 1, "last_exit": None}
        ],
        "reachable": True,
        **changes,
    }


def job(name: str, **changes: Any) -> Json:
    return {
        "job": name,
        "key": 7,
        "state": "RUNNING",
        "reason": "2 workers",
        "since_unix": 0.0,
        "workers_asked": None,
        "workers_planned": 1,
        "script": "/home/me/train.py",
        "strategy": "data-parallel",
        "replicas": 2,
        "min_insync": 1,
        "consistency": "sync",
        "under_replicated": 0,
        "round": 120,
        "metrics": {"accuracy": 0.9, "loss": 0.25},
        "step_s": 0.01,
        "codec": "none",
        "pushed_bytes": 40,
        "gradient_bytes": 40,
        "workers": [
            {
                "uid": "n1.1",
                "node": "n1",
                "state": "running",
                "rank": 0,
                "round": 1,
                "step_s": 0.01,
                "compute_s": 0.004,
                "transport": "shared memory",
                "reason": "",
            }
        ],
        "blocks": 36,
        "blocks_by_node": {"n1": 12, "n2": 24},
        "pending_moves": 0,
        "movement": {"blocks": 0, "value_bytes": 0, "snapshot_bytes": 0, "least_value_bytes": 0},
        "verdict": verdict(10, workers=1),
        "failure": None,
        "checkpoint": None,
        "checkpoint_attempts": {"made": 0, "failed": 0, "error": ""},
        "submitted_unix": 1.0,
        "ended_unix": None,
        **changes,
    }


def verdict(acknowledged: int, *, lost: int = 0, workers: int = 0, unaudited: int = 0) -> Json:
    return {
        "acknowledged": acknowledged,
        "lost": lost,
        "duplicated": 0,
        "workers": workers,
        "unaudited": unaudited,
    }


def line(text: str, node: str = "n1", stream: str = "stdout", rank: int | None = None) -> Json:
    row = {"node": node, "worker": f"{node}.1", "stream": stream, "text": text}
    return {**row, "unix_s": 0.0, "rank": rank}


class FakeApi:
    """``with FakeApi() as api``: serves at ``api.url`` what its fields hold at the moment.

    ``drained_per_look``: blocks that leave a draining node whenever the nodes are asked for.
    ``career``: what becomes of a submitted job, one change each time the status is asked for.
    ``holding``: submissions are never answered.
    ``events``: the timeline. ``streams``: what one stream after the other is sent before it ends;
    there is no other: 503. ``resumed``: what each asked to resume from.
    ``errors``: by path, the status and body that are answered instead.
    """

    def __init__(self) -> None:
        self.url = ""
        self.cluster = "lab"
        self.leader: str | None = "n1"
        self.nodes = [node("n1", leader=True), node("n2")]
        self.jobs: dict[str, Json] = {}
        self.ended_left_out = 0
        self.moves: Json = {"moves": [], "bytes": 0, "pending_moves": 0}
        self.checkpoints: Json = {"directory": "/ckpt", "node": "n1", "checkpoints": []}
        self.lines: list[Json] = []
        self.drained_per_look = 10
        self.career: list[Json] = []
        self.holding = False
        self.errors: dict[str, tuple[int, Any]] = {}
        self.events: list[Json] = []
        self.streams: list[list[bytes]] = []
        self.resumed: list[str | None] = []
        self.requests: list[tuple[str, str, Any]] = []
        self._stay: dict[str, bool] = {}

    def asked(self, method: str) -> list[tuple[str, Any]]:
        return [(path, body) for how, path, body in self.requests if how == method]

    def __enter__(self) -> Self:
        started = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._serve(started)))
        self._thread.start()
        started.wait()
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop listening and break every connection. Idempotent."""
        with contextlib.suppress(RuntimeError):  # it is closed already
            self._loop.call_soon_threadsafe(self._closing.set)
        self._thread.join()

    async def _serve(self, started: threading.Event) -> None:
        self._loop, self._closing = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._note])
        app.router.add_get("/api/v1/status", self._status)
        app.router.add_get("/api/v1/events", self._events)
        app.router.add_get("/api/v1/stream", self._stream)
        app.router.add_get("/api/v1/nodes", self._nodes)
        app.router.add_post("/api/v1/nodes/{node}/drain", self._drain)
        app.router.add_delete("/api/v1/nodes/{node}/drain", self._undrain)
        app.router.add_get("/api/v1/rebalance", self._rebalance)
        app.router.add_post("/api/v1/rebalance", self._rebalance)
        app.router.add_post("/api/v1/jobs", self._submit)
        app.router.add_post("/api/v1/jobs/{job}/cancel", self._cancel)
        app.router.add_get("/api/v1/jobs", self._jobs)
        app.router.add_get("/api/v1/jobs/{job}", self._job)
        app.router.add_delete("/api/v1/jobs/{job}", self._forget)
        app.router.add_post("/api/v1/jobs/{job}/checkpoint", self._checkpoint)
        app.router.add_get("/api/v1/jobs/{job}/checkpoints", self._checkpoints)
        app.router.add_post("/api/v1/jobs/{job}/scale", self._scale)
        app.router.add_get("/api/v1/jobs/{job}/logs", self._logs)
        runner = web.AppRunner(app, shutdown_timeout=1.0)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
        started.set()
        await self._closing.wait()
        await runner.cleanup()

    @web.middleware
    async def _note(self, request: web.Request, handler: Any) -> web.StreamResponse:
        body = await request.text()
        self.requests.append((request.method, request.path, json.loads(body) if body else None))
        if request.path in self.errors:
            status, answer = self.errors[request.path]
            text = answer if isinstance(answer, str) else json.dumps(answer)
            return web.Response(status=status, text=text)
        response: web.StreamResponse = await handler(request)
        return response

    async def _status(self, _: web.Request) -> web.Response:
        if self.career and self.jobs:
            name = list(self.jobs)[-1]
            self.jobs[name] |= self.career.pop(0)
        return web.json_response(
            {
                "cluster": self.cluster,
                "version": "0.1.0",
                "leader": self.leader,
                "nodes": self.nodes,
                "jobs": list(self.jobs.values()),
                "ended_left_out": self.ended_left_out,
                "from_the_future": 1,
            }
        )

    async def _jobs(self, request: web.Request) -> web.Response:
        """Two on a page. ``after`` is how many were on the pages before."""
        final = ("SUCCEEDED", "FAILED", "CANCELLED")
        found = [
            each
            for each in self.jobs.values()
            if request.query.get("state") in (None, each["state"])
            and not ("active" in request.query and each["state"] in final)
        ]
        begin = int(request.query["after"])
        more = str(begin + 2) if len(found) > begin + 2 else None
        return web.json_response({"jobs": found[begin : begin + 2], "next": more})

    async def _events(self, request: web.Request) -> web.Response:
        found = self.events[-int(request.query["limit"]) :]
        return web.json_response({"events": found, "next": "0123abcd-9", "missed": False})

    async def _stream(self, request: web.Request) -> web.StreamResponse:
        self.resumed.append(request.headers.get("Last-Event-ID"))
        if not self.streams:
            return web.json_response({"error": {"what": "no more streams"}}, status=503)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        for chunk in self.streams.pop(0):
            await response.write(chunk)
        return response

    async def _nodes(self, _: web.Request) -> web.Response:
        for each in list(self.nodes):
            if each["state"] == "draining":
                each["replicas"] = max(0, each["replicas"] - self.drained_per_look)
                if not each["replicas"]:
                    each |= {"state": "drained", "workers": []}
            elif each["state"] == "drained" and not self._stay[each["node"]]:
                self.nodes.remove(each)
        return web.json_response({"nodes": self.nodes})

    async def _drain(self, request: web.Request) -> web.Response:
        each = self._named(request)
        each["state"] = "draining"
        self._stay[each["node"]] = (await request.json())["stay"]
        return web.json_response(each, status=202)

    async def _undrain(self, request: web.Request) -> web.Response:
        each = self._named(request)
        each["state"] = "ready"
        return web.json_response(each)

    async def _rebalance(self, request: web.Request) -> web.Response:
        return web.json_response(self.moves, status=202 if request.method == "POST" else 200)

    async def _submit(self, request: web.Request) -> web.Response:
        body = await request.json()
        if self.holding:
            await self._closing.wait()
        name = body.get("name") or "train-1"
        self.jobs[name] = job(name, state="PENDING", round=None, metrics={})
        return web.json_response(self.jobs[name], status=201)

    async def _cancel(self, request: web.Request) -> web.Response:
        found = self.jobs[request.match_info["job"]]
        found |= {"state": "CANCELLED", "reason": "cancelled by request"}
        return web.json_response(found, status=202)

    async def _forget(self, request: web.Request) -> web.Response:
        name = request.match_info["job"]
        del self.jobs[name]
        directory = self.checkpoints.get("directory", "")
        return web.json_response({"job": name, "checkpoint_dir": directory})

    async def _job(self, request: web.Request) -> web.Response:
        if self.career:
            self.jobs[request.match_info["job"]] |= self.career.pop(0)
        return web.json_response(self.jobs[request.match_info["job"]])

    async def _checkpoint(self, request: web.Request) -> web.Response:
        return web.json_response({"job": request.match_info["job"], "request": 7}, status=202)

    async def _checkpoints(self, request: web.Request) -> web.Response:
        return web.json_response({"job": request.match_info["job"], **self.checkpoints})

    async def _scale(self, request: web.Request) -> web.Response:
        return web.json_response(self.jobs[request.match_info["job"]], status=202)

    async def _logs(self, request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        name, sent = request.match_info["job"], 0
        while not self._closing.is_set():
            ended = self.jobs[name]["state"] in ("SUCCEEDED", "FAILED", "CANCELLED")
            for each in self.lines[sent:]:
                await response.write(json.dumps(each).encode() + b"\n")
                sent += 1
            if ended or request.query.get("follow") != "1":
                return response
            await asyncio.sleep(0.01)
        assert request.transport is not None
        request.transport.abort()
        return response

    def _named(self, request: web.Request) -> Json:
        return next(each for each in self.nodes if each["node"] == request.match_info["node"])
