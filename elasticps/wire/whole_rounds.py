"""A worker's whole part in a round as one request, where one server leads all that it takes.

It asks what three requests would ask, one after the other: a GROUP of pushes, a LEDGER vote once
all of them are acknowledged, and a GROUP of pulls that prove what the vote was answered.
"""

from __future__ import annotations

import msgspec

from elasticps.core.commands import Vote
from elasticps.core.ids import PlanEpoch
from elasticps.errors import WireError
from elasticps.wire.frame import Header
from elasticps.wire.groups import GroupMeta, GroupReply, check_group


class RoundMeta(msgspec.Struct, frozen=True, array_like=True):
    """``pull``: what is to be read, but for its proof. ``ledger_epoch``: the ledger's."""

    push: GroupMeta
    vote: Vote
    ledger_epoch: PlanEpoch
    pull: GroupMeta


class RoundReply(msgspec.Struct, frozen=True, array_like=True):
    """How far it came: each part is there once the one before has gone well.

    ``answer`` is the ledger's, encoded; empty where it gave none.
    """

    pushed: GroupReply
    answer: bytes = b""
    pulled: GroupReply | None = None


def check_round(meta: RoundMeta, header: Header) -> None:
    """Raise WireError for a round that breaks a limit, or whose parts do not belong together."""
    if meta.push.push is None or meta.pull.pull is None:
        raise WireError("a round pushes first and pulls last", field="push")
    check_group(meta.push, header.payload_length)
    check_group(meta.pull, 0)
    if meta.vote.worker != header.worker:
        raise WireError("a worker may speak for itself alone", field="worker")
