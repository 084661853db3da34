"""What a failed gRPC call says about the request: was it refused, never begun, or is it unknown?"""

from __future__ import annotations

from enum import Enum, auto

import grpc

from elasticps.errors import LeaseLost, StoreError, WatchCompacted


class Fault(Enum):
    """What is known of a request whose call failed."""

    REFUSED = auto()
    """etcd refused it; it would refuse it again."""
    NOT_BEGUN = auto()
    """This endpoint cannot serve it now and has not begun to: another may."""
    STALE_TOKEN = auto()
    """Not begun, for want of a valid auth token."""
    UNKNOWN = auto()
    """No answer: it may have taken effect, or may yet."""


_NOT_BEGUN = (
    "etcdserver: no leader",
    "etcdserver: too many requests",
    "etcdserver: not capable",
    "raft proposal dropped",
)
_STALE_TOKEN = (
    "etcdserver: invalid auth token",
    "etcdserver: user name is empty",
    "etcdserver: revision of auth store is old",
)
_UNKNOWN = frozenset(
    {
        grpc.StatusCode.ABORTED,
        grpc.StatusCode.CANCELLED,
        grpc.StatusCode.DEADLINE_EXCEEDED,
        grpc.StatusCode.INTERNAL,
        grpc.StatusCode.UNAVAILABLE,
        grpc.StatusCode.UNKNOWN,
    }
)


def fault_of(error: grpc.aio.AioRpcError) -> Fault:
    """Classify by etcd's own words first: its codes do not tell "not begun" from "unknown"."""
    details = error.details() or ""
    if details in _STALE_TOKEN:
        return Fault.STALE_TOKEN
    if details in _NOT_BEGUN:
        return Fault.NOT_BEGUN
    return Fault.UNKNOWN if error.code() in _UNKNOWN else Fault.REFUSED


def refusal(error: grpc.aio.AioRpcError, where: str) -> StoreError:
    """The error to raise for a refused request, with etcd's own words."""
    details = error.details() or error.code().name
    kind = StoreError
    if details == "etcdserver: requested lease not found":
        kind = LeaseLost
    elif details == "etcdserver: mvcc: required revision has been compacted":
        kind = WatchCompacted
    return kind(details, where=where)


def words_of(error: grpc.aio.AioRpcError) -> str:
    return error.details() or error.code().name
