"""All steps of a round that are asked for together, side by side.

While the server's threads are at the pieces of one block, the event loop takes up the next; and at
the end of a block nobody waits for who still has a piece of it. Each piece of a value is given to
all workers that have asked for it while it is in cache.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence

from elasticps.core.replica import Commit
from elasticps.errors import PluginError
from elasticps.server.block_rounds import BlockRounds
from elasticps.server.compute import ComputeThreads, Share
from elasticps.server.hosted import Request
from elasticps.server.joint_step import Due, share_of

Asked = Mapping[BlockRounds, Sequence[Request]]
"""Of each block, pulls that are yet to be answered."""


def step_each(asked: Asked, commit: Commit | None, threads: ComputeThreads) -> None:
    """Apply what ``commit`` proves at those blocks that have it prepared.

    The requests are pulls with that proof. Some blocks are left to the pulls themselves.
    """
    if commit is None or len(asked) < 2:
        return
    stepped: list[BlockRounds] = []
    began_s, began_ns = time.monotonic(), next(iter(asked)).spans.begin()

    def shares() -> Iterator[Share]:
        yield from _joint(asked, commit, stepped)
        for block, requests in asked.items():
            if all(each.into is None for each in requests):
                continue  # it is sent: stepped while others are on their way
            share = block.begin_step(commit, requests)
            if share is not None:
                stepped.append(block)
                yield share

    threads.share_out_each(shares())
    if stepped:
        stepped[0].spans.end("apply", began_ns, block=stepped[0].id, round_=commit.round)
        spent_s = (time.monotonic() - began_s) / len(stepped)
        for block in stepped:
            block.count_step(spent_s)


def _joint(asked: Asked, commit: Commit, stepped: list[BlockRounds]) -> Iterator[Share]:
    """The steps of small blocks, those of a param group together."""
    groups: dict[int, list[tuple[BlockRounds, Due]]] = {}
    for block in [each for each in asked if each.is_due(commit)]:
        due = block.begin_joint_step(commit, asked[block])
        if due is not None:
            stepped.append(block)
            groups.setdefault(block.tensor.group, []).append((block, due))
    for members in groups.values():
        yield _share_of(members, asked)


def _share_of(members: Sequence[tuple[BlockRounds, Due]], asked: Asked) -> Share:
    share = share_of([due for _, due in members])

    def ended(error: Exception | None) -> None:
        try:
            share.ended(error)
        except PluginError as failure:
            for block, _ in members:
                block.fail(failure)
        else:
            for block, _ in members:
                block.has_written(asked[block])

    return Share(share.pieces, share.work, ended)
