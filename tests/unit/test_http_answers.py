"""What one daemon answers another one reads."""

from __future__ import annotations

import math

import msgspec

from elasticps.core.ids import Generation, NodeId, Round
from elasticps.daemon.http.answers import LocalStatus, LocalWorker
from elasticps.wire.messages import Progress


def test_a_node_is_heard_though_its_workers_loss_is_no_number() -> None:
    progress = Progress(
        round=Round(3),
        generation=Generation(1),
        rank=0,
        world=1,
        metrics={"loss": math.nan, "norm": math.inf, "rate": 0.5},
    )
    told = LocalStatus(
        node=NodeId("a"),
        foreign_values=0,
        load=None,
        children=(),
        workers=(LocalWorker(uid="a.1", progress=progress),),
    )
    heard = msgspec.json.decode(msgspec.json.encode(told), type=LocalStatus)
    assert heard.workers[0].progress is not None
    assert heard.workers[0].progress.metrics == {"loss": None, "norm": None, "rate": 0.5}
