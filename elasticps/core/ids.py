"""A type for each identity, so that no bare int or str crosses a module boundary."""

from __future__ import annotations

from typing import NewType

NodeId = NewType("NodeId", str)
"""A machine's stable name, chosen by its operator."""

ServerId = NewType("ServerId", str)
"""One life of a shard server: ``<node>/<incarnation>``. A restart is another server."""

WorkerId = NewType("WorkerId", int)
"""One life of a worker: the etcd revision that created its key. A restart is another worker."""

JobName = NewType("JobName", str)
JobKey = NewType("JobKey", int)
"""The etcd revision that created the job's spec: the job's number on the wire."""

BlockId = NewType("BlockId", int)
"""A block's index within its job. Block 0 is the job's ledger."""

PlanEpoch = NewType("PlanEpoch", int)
"""The fencing token: the etcd revision of the plan write that last changed a block's entry."""

Seq = NewType("Seq", int)
"""A worker's own count of its pushes; with its WorkerId it names one push for ever."""

Round = NewType("Round", int)
"""One synchronous step of a job; the first is 1."""

Generation = NewType("Generation", int)
"""A number for the set of workers that count in a round; grows whenever that set changes."""

LEDGER = BlockId(0)


def server_of(node: NodeId, incarnation: str) -> ServerId:
    return ServerId(f"{node}/{incarnation}")


def node_of(server: ServerId) -> NodeId:
    return NodeId(server.rpartition("/")[0])
