"""Requests that the HTTP API refuses, and what it answers them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from elasticps.api.plugins import STRATEGIES, discover
from tests.integration.cluster.acts import SCRIPTS

MIB = 1 << 20
STRATEGY_NAMES = ", ".join(plugin.name for plugin in discover(STRATEGIES))
JOB: dict[str, Any] = {"argv": ["train.py"], "cwd": str(SCRIPTS)}
JSON = {"Content-Type": "application/json"}
TAKEN_KEY = "taken-key"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A request, and what is to be answered."""

    name: str
    method: str = "POST"
    path: str = "jobs"
    headers: Mapping[str, str] = field(default_factory=lambda: JSON)
    body: bytes | str | None = None
    status: int = 400
    names: str | None
    """The field that the error names."""
    limit: str | None = None
    """What the error's limit contains."""
    word: str = ""
    """What the error's sentence contains."""


def body(name: str, text: bytes | str, names: str, /, **more: Any) -> Row:
    return Row(name=name, body=text, names=names, **more)


def wish(name: str, names: str, limit: str | None = None, /, **fields: Any) -> Row:
    """A job that is good but for ``fields``."""
    return Row(name=name, body=json.dumps(JOB | fields), names=names, limit=limit)


BODIES = [
    body("cut-off", b"{", "body", word="truncated"),
    body("no-json", b"not json", "body", word="malformed"),
    body("no-text", b"\xff\xfe", "body"),
    body("utf-16", json.dumps(JOB).encode("utf-16"), "body"),
    body("list", b"[]", "body", limit="one JSON object"),
    body("deep-lists", b"[" * 100_000 + b"]" * 100_000, "body", limit="32 levels"),
    body("deep-objects", b'{"a":' * 100_000 + b"1" + b"}" * 100_000, "body", limit="32 levels"),
    body("twice", b'{"argv": ["a"], "cwd": "/", "cwd": "/etc"}', "cwd", limit="once"),
    body("twice-within", json.dumps(JOB)[:-1] + ', "env": {"A": "1", "A": "2"}}', "A"),
    body("no-argv", json.dumps({"cwd": str(SCRIPTS)}), "argv", limit="required"),
    body("nothing", b"", "argv", limit="required"),
    wish("unknown-field", "replica", "replicas", replica=1),
    wish("uid-0", "uid", uid=0),
    wish("user-root", "user", user="root"),
    wish("words-for-a-number", "start_workers", "int", start_workers="two"),
    wish("number-in-env", "env", "str", env={"A": 1}),
    wish("argv-as-text", "argv", "array", argv="train.py --epochs 1"),
    wish("lone-surrogate", "body", env={"PYTHONSTARTUP": "\ud800"}),
    wish("half-a-round", "staleness", "int", staleness=0.5, consistency="bounded"),
    Row(
        name="beyond-a-mebibyte",
        body=json.dumps(JOB | {"argv": ["train.py", "x" * 2 * MIB]}),
        status=413,
        names="body",
        limit="1048576 bytes",
    ),
]

VALUES = [
    wish("8-replicas", "replicas", "1 to 7", replicas=8),
    wish("no-replicas", "replicas", "1 to 7", replicas=0),
    wish("no-insync", "min_insync", "1 to 2", min_insync=0),
    wish("insync-above-replicas", "min_insync", "1 to 2", min_insync=3),
    wish("no-consistency", "consistency", "sync, bounded, async", consistency="strict"),
    wish("staleness-in-sync", "staleness", "0 unless the consistency is bounded", staleness=2),
    wish("negative-staleness", "staleness", "0 to", staleness=-1, consistency="bounded"),
    wish("backups-for-one", "backup_workers", "fewer than", backup_workers=1),
    wish("negative-backups", "backup_workers", "at least 0", backup_workers=-1),
    wish(
        "backups-in-async",
        "backup_workers",
        "0 unless the consistency is sync",
        backup_workers=1,
        start_workers=2,
        consistency="async",
    ),
    wish("negative-every", "checkpoint_every", "0 to", checkpoint_every=-1),
    wish("checkpoints-nowhere", "checkpoint_dir", "an absolute path", checkpoint_every=5),
    wish("checkpoints-relative", "checkpoint_dir", "an absolute path", checkpoint_dir="saved"),
    wish("no-such-scheme", "checkpoint_dir", "fsspec knows", checkpoint_dir="nowhere://bucket"),
    wish("scheme-not-installed", "resume", "on every machine", resume="dropbox://folder"),
    wish(
        "store-that-refuses",
        "checkpoint_dir",
        "a place that all machines reach",
        checkpoint_dir="webhdfs://127.0.0.1:1/jobs",
    ),
    wish("resume-relative", "resume", "an absolute path", resume="saved"),
    wish("resume-with-dots", "resume", '".."', resume="/a/../b"),
    wish("resume-with-nul", "resume", "an absolute path", resume="/a\0"),
    wish("small-blocks", "block_bytes", f"4096 to {128 * MIB}", block_bytes=4095),
    wish("large-blocks", "block_bytes", f"4096 to {128 * MIB}", block_bytes=128 * MIB + 1),
    wish("no-workers", "start_workers", "1 to 10000", start_workers=0),
    wish("a-million-workers", "start_workers", "1 to 10000", start_workers=10**6),
    wish("a-million-at-most", "max_workers", "1 to 10000", max_workers=10**6),
    wish("fewer-than-to-start", "max_workers", "3 to 10000", start_workers=3, max_workers=2),
    wish("no-such-strategy", "strategy", STRATEGY_NAMES, strategy="telepathy"),
    wish("strategy-option", "strategy", "ring, torus", strategy="gossip:topology=no"),
    wish("codec-option", "codec", None, codec="ef+top-k:ratio=5"),
    wish("placement-option", "placement", "band", placement="load-aware:no=1"),
    wish("name-in-capitals", "name", "a-z", name="Grand"),
    wish("name-as-tag", "name", "a-z", name="<script>alert(1)</script>"),
    wish("name-with-cr-lf", "name", "a-z", name="a\r\nX-Evil: 1"),
    wish("name-too-long", "name", "a-z", name="x" * 41),
    wish("name-as-path", "name", "a-z", name="../meta"),
    wish("no-words", "argv", "at least one word", argv=[]),
    wish("empty-script", "argv", "at least one word", argv=[""]),
    wish("argv-with-nul", "argv", "without NUL", argv=["train.py", "a\0b"]),
    wish("no-such-script", "argv", "a file", argv=["nonesuch.py"]),
    wish("script-is-a-folder", "argv", "a file", argv=["."]),
    wish("script-too-long", "argv", "a file", argv=["x" * 5000]),
    wish("script-out-of-cwd", "argv", "a script in cwd", argv=["../../../../../../etc/passwd"]),
    wish("argument-of-128-kib", "argv", "131071 bytes", argv=["train.py", "x" * 131072]),
    wish("arguments-of-600-kib", "argv", "524288 bytes", argv=["train.py", *["x" * 60_000] * 10]),
    wish("cwd-relative", "cwd", "an absolute path", cwd="relative"),
    wish("cwd-nowhere", "cwd", "an absolute path", cwd="/nonesuch"),
    wish("cwd-with-nul", "cwd", "an absolute path", cwd="/tmp\0"),
    wish("env-with-equals", "env", "NAME=VALUE", env={"A=B": "1"}),
    wish("env-without-name", "env", "NAME=VALUE", env={"": "1"}),
    wish("env-with-nul", "env", "NAME=VALUE", env={"A": "1\0"}),
    wish("ld-preload", "env", "no LD_*", env={"LD_PRELOAD": "/tmp/evil.so"}),
    wish("ld-library-path", "env", "no LD_*", env={"LD_LIBRARY_PATH": "/tmp"}),
    wish("ld-audit", "env", "no LD_*", env={"LD_AUDIT": "/tmp/evil.so"}),
    wish("python-startup", "env", "PYTHON*", env={"PYTHONHOME": "/tmp"}),
    wish("python-without-asserts", "env", "PYTHON*", env={"PYTHONOPTIMIZE": "1"}),
    wish("another-daemon", "env", "ELASTICPS_*", env={"ELASTICPS_AGENT": "/tmp/evil.sock"}),
    wish("variable-of-128-kib", "env", "131071 bytes", env={"A": "x" * 131072}),
]

HEADERS = [
    Row(
        name="foreign-origin",
        headers=JSON | {"Origin": "http://evil.example"},
        body="{}",
        status=403,
        names="Origin",
    ),
    Row(name="null-origin", headers=JSON | {"Origin": "null"}, status=403, names="Origin"),
    Row(name="foreign-host", headers={"Host": "evil.example"}, status=403, names="Host"),
    Row(name="no-host", headers={"Host": ""}, status=403, names="Host"),
    Row(
        name="gzip-bomb",
        headers=JSON | {"Content-Encoding": "gzip"},
        body=gzip.compress(b" " * 100 * MIB),
        status=415,
        names="Content-Encoding",
    ),
    Row(
        name="brotli",
        headers=JSON | {"Content-Encoding": "br"},
        body=b"x",
        status=415,
        names="Content-Encoding",
    ),
    Row(
        name="as-a-form",
        headers={"Content-Type": "application/x-www-form-urlencoded"},
        body=json.dumps(JOB),
        status=415,
        names="Content-Type",
        limit="application/json",
    ),
    Row(
        name="as-text",
        headers={"Content-Type": "text/plain"},
        body=json.dumps(JOB),
        status=415,
        names="Content-Type",
    ),
    Row(
        name="in-latin-1",
        headers={"Content-Type": "application/json; charset=latin-1"},
        body=json.dumps(JOB),
        status=415,
        names="Content-Type",
    ),
    Row(
        name="same-key-another-body",
        headers=JSON | {"Idempotency-Key": TAKEN_KEY},
        body=json.dumps(JOB | {"name": "another"}),
        status=409,
        names="Idempotency-Key",
    ),
    Row(
        name="same-key-another-path",
        path="nodes/n1/restart",
        headers={"Idempotency-Key": TAKEN_KEY},
        status=409,
        names="Idempotency-Key",
    ),
    Row(
        name="key-of-129",
        headers=JSON | {"Idempotency-Key": "k" * 129},
        body=json.dumps(JOB),
        names="Idempotency-Key",
        limit="1 to 128",
    ),
    Row(
        name="key-of-two-words",
        headers=JSON | {"Idempotency-Key": "two words"},
        body=json.dumps(JOB),
        names="Idempotency-Key",
    ),
    Row(
        name="empty-key",
        headers=JSON | {"Idempotency-Key": ""},
        body=json.dumps(JOB),
        names="Idempotency-Key",
    ),
]


def get(name: str, path: str, names: str, status: int = 400, **more: Any) -> Row:
    return Row(name=name, method="GET", path=path, names=names, status=status, **more)


def post(name: str, path: str, names: str, status: int = 404, **more: Any) -> Row:
    return Row(name=name, path=path, names=names, status=status, **more)


PATHS = [
    post("drain-nobody", "nodes/n0/drain", "node", limit="n1, n2"),
    post("restart-nobody", "nodes/n0/restart", "node"),
    post("node-as-path", "nodes/..%2f..%2fmeta/drain", "node"),
    post("node-with-cr-lf", "nodes/a%0d%0aX-Evil:%201/drain", "node"),
    Row(name="undrain-nobody", method="DELETE", path="nodes/n0/drain", status=404, names="node"),
    get("no-such-job", "jobs/nonesuch", "job", 404),
    get("job-as-tag", "jobs/%3Cscript%3E", "job", 404),
    get("job-with-nul", "jobs/a%00b", "job", 404),
    post("cancel-nothing", "jobs/nonesuch/cancel", "job"),
    post("checkpoint-of-nothing", "jobs/nonesuch/checkpoint", "job"),
    get("logs-of-nothing", "jobs/nonesuch/logs", "job", 404),
    get("no-such-path", "nonesuch", "path", 404),
    get("out-of-the-api", "../../../etc/passwd", "path", 404),
    get("no-rows", "jobs?limit=0", "limit", limit="1 to 1000"),
    get("no-such-state", "jobs?state=DONE", "state", limit="PENDING, RUNNING"),
    get("a-million-rows", "jobs?limit=1000000", "limit", limit="1 to 1000"),
    get("rows-in-words", "nodes?limit=ten", "limit", limit="1 to 1000"),
    get("after-nothing", "jobs?after=xyz", "after"),
    get("after-minus-one", "jobs?after=-1", "after"),
    get("limit-twice", "jobs?limit=1&limit=2", "limit", limit="once"),
    get("unknown-parameter", "jobs?limits=1", "limits", limit="after, limit"),
    get("parameter-of-another", "status?limit=1", "limit", limit="nothing"),
    get("follow-perhaps", "jobs/x/logs?follow=perhaps", "follow"),
    get("body-of-a-question", "status", "a", body=b'{"a": 1}'),
    post("body-of-none", "rebalance", "force", 400, body=b'{"force": true}'),
    post("drain-for-ever", "nodes/n1/drain", "stay", 400, body=b'{"stay": "for ever"}'),
]

METHODS = [
    Row(
        name=f"{method.lower()}-{path.replace('/', '-')}",
        method=method,
        path=path,
        headers={},
        status=405,
        names="method",
        limit=allowed,
    )
    for method, path, allowed in [
        ("DELETE", "jobs", "GET, HEAD, POST"),
        ("PUT", "jobs", "GET, HEAD, POST"),
        ("POST", "status", "GET, HEAD"),
        ("GET", "nodes/n1/restart", "POST"),
        ("TRACE", "status", "GET, HEAD"),
    ]
]
