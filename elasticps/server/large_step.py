"""The steps of many large blocks that one request asks for, side by side.

While the server's threads are at the pieces of one block, the event loop takes up the next; and at
the end of a block nobody waits for who still has a piece of it.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from elasticps.core.replica import Commit
from elasticps.server.block_rounds import BlockRounds
from elasticps.server.compute import ComputeThreads, Share
from elasticps.server.hosted import Request


def step_each(
    asked: Sequence[tuple[BlockRounds, Request]], commit: Commit | None, threads: ComputeThreads
) -> None:
    """Apply what ``commit`` proves at those blocks that are large and have it prepared.

    The requests are pulls with that proof, which are yet to be answered.
    """
    if commit is None or len(asked) < 2:
        return
    stepped: list[BlockRounds] = []
    began_s, began_ns = time.monotonic(), asked[0][0].spans.begin()

    def shares() -> Iterator[Share]:
        for block, request in asked:
            share = block.begin_step(commit, request)
            if share is not None:
                stepped.append(block)
                yield share

    threads.share_out_each(shares())
    if stepped:
        stepped[0].spans.end("apply", began_ns, block=stepped[0].id, round_=commit.round)
        spent_s = (time.monotonic() - began_s) / len(stepped)
        for block in stepped:
            block.count_step(spent_s)
