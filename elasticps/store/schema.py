"""The names of all keys in etcd, and what a key's name says. No other file spells a key."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import Enum

import msgspec

from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import StoreError, UsageError
from elasticps.store.client import Store
from elasticps.store.operations import Compare

FORMAT = 1
"""The version of everything that is kept in etcd."""

_CLUSTER = re.compile(r"[a-z0-9][a-z0-9-]{0,62}")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_MAX_PARTS = 100_000


class KeyKind(Enum):
    META = "meta"
    LEADER = "leader"
    REBALANCE = "rebalance"
    NODE = "nodes"
    DRAIN = "drains"
    REQUEST = "requests"
    JOB_SPEC = "spec"
    JOB_STATUS = "status"
    JOB_MODEL = "model"
    JOB_CANCEL = "cancel"
    JOB_CHECKPOINT = "checkpoint"
    JOB_SCALE = "scale"
    WORKER = "workers"
    PLAN_PART = "plan"
    REPORT = "reports"


@dataclass(frozen=True, slots=True, kw_only=True)
class ParsedKey:
    """What a key's name says. ``worker`` is a uid, ``<node>.<n>``; its ``node`` is given too."""

    kind: KeyKind
    node: str | None = None
    job: str | None = None
    part: int | None = None
    worker: str | None = None


class Meta(msgspec.Struct, frozen=True):
    """The value of the meta key."""

    format: int


class Keys:
    """The keys of one cluster. Names that would break the layout raise UsageError."""

    def __init__(self, cluster: str) -> None:
        self.cluster = _checked("cluster", cluster, _CLUSTER)
        self.root = f"/elasticps/{cluster}/"
        self.meta = f"{self.root}meta"
        self.leader = f"{self.root}leader"
        self.rebalance = f"{self.root}rebalance"
        self.nodes = f"{self.root}nodes/"
        self.drains = f"{self.root}drains/"
        self.jobs = f"{self.root}jobs/"
        self.requests = f"{self.root}requests/"

    def node(self, node: str) -> str:
        return self.nodes + _checked("node", node)

    def drain(self, node: str) -> str:
        return self.drains + _checked("node", node)

    def request(self, digest: str) -> str:
        """What became of a request that came with a key; ``digest`` is the key's."""
        return self.requests + _checked("request", digest)

    def job(self, job: str) -> str:
        """The prefix of all keys of a job."""
        return f"{self.jobs}{_checked('job', job)}/"

    def same_job(self, job: str, created: int) -> Compare:
        """Holds while the job of this name is the one whose spec was created at that revision.

        A name may come again: whoever writes of a job compares this, lest it writes of a later one.
        """
        return Compare.created(self.job_spec(job), created)

    def job_spec(self, job: str) -> str:
        return f"{self.job(job)}spec"

    def job_status(self, job: str) -> str:
        return f"{self.job(job)}status"

    def job_model(self, job: str) -> str:
        return f"{self.job(job)}model"

    def job_cancel(self, job: str) -> str:
        return f"{self.job(job)}cancel"

    def job_checkpoint(self, job: str) -> str:
        return f"{self.job(job)}checkpoint"

    def job_scale(self, job: str) -> str:
        return f"{self.job(job)}scale"

    def workers(self, job: str) -> str:
        return f"{self.job(job)}workers/"

    def worker(self, job: str, uid: str) -> str:
        """``uid`` is ``<node>.<n>``."""
        if _worker_node(uid) is None:
            raise UsageError(f"{uid!r} is not a worker", field="uid", limit="<node>.<number>")
        return self.workers(job) + uid

    def plan(self, job: str) -> str:
        return f"{self.job(job)}plan/"

    def plan_part(self, job: str, index: int) -> str:
        if not 0 <= index < _MAX_PARTS:
            limit = f"0 to {_MAX_PARTS - 1}"
            raise UsageError(f"{index} is not a part of a plan", field="index", limit=limit)
        return f"{self.plan(job)}{index:05d}"

    def reports(self, job: str) -> str:
        return f"{self.job(job)}reports/"

    def report(self, job: str, node: str) -> str:
        return self.reports(job) + _checked("node", node)

    def parse(self, key: str) -> ParsedKey | None:
        """What ``key`` is, or None when it is not one of these."""
        if not key.startswith(self.root):
            return None
        match key.removeprefix(self.root).split("/"):
            case ["meta" | "leader" | "rebalance" as name]:
                return ParsedKey(kind=KeyKind(name))
            case ["nodes" | "drains" as name, node] if _NAME.fullmatch(node):
                return ParsedKey(kind=KeyKind(name), node=node)
            case ["requests", digest] if _NAME.fullmatch(digest):
                return ParsedKey(kind=KeyKind.REQUEST)
            case ["jobs", job, *rest] if _NAME.fullmatch(job):
                return _parse_job(job, rest)
        return None


async def check_format(store: Store, keys: Keys) -> None:
    """Write the format's version if the cluster is new; else require that it is ours.

    Raises StoreError, with both versions, when it is another.
    """
    value = msgspec.json.encode(Meta(format=FORMAT))
    if await store.create(keys.meta, value) is not None:
        return
    found = await store.get(keys.meta)
    if found is None:
        raise StoreError("the format's version was deleted while it was read", where=keys.meta)
    try:
        meta = msgspec.json.decode(found.value, type=Meta)
    except UNDECODABLE as error:
        raise StoreError(f"the value is not ours: {error}", where=keys.meta) from None
    if meta.format != FORMAT:
        raise StoreError(
            f"etcd holds format {meta.format}, this version of elasticps speaks format {FORMAT}",
            where=keys.meta,
            hint="use the elasticps version that made this cluster, or another cluster name",
        )


def _parse_job(job: str, rest: list[str]) -> ParsedKey | None:
    match rest:
        case ["spec" | "status" | "model" | "cancel" | "checkpoint" | "scale" as name]:
            return ParsedKey(kind=KeyKind(name), job=job)
        case ["workers", uid] if node := _worker_node(uid):
            return ParsedKey(kind=KeyKind.WORKER, job=job, node=node, worker=uid)
        case ["plan", part] if re.fullmatch("[0-9]{5}", part):
            return ParsedKey(kind=KeyKind.PLAN_PART, job=job, part=int(part))
        case ["reports", node] if _NAME.fullmatch(node):
            return ParsedKey(kind=KeyKind.REPORT, job=job, node=node)
    return None


def _worker_node(uid: str) -> str | None:
    node, _, number = uid.rpartition(".")
    return node if re.fullmatch("[0-9]+", number) and _NAME.fullmatch(node) else None


def _checked(field: str, name: str, pattern: re.Pattern[str] = _NAME) -> str:
    if not pattern.fullmatch(name):
        raise UsageError(
            f"{name!r} is not a name for a {field}", field=field, limit=pattern.pattern
        )
    return name
