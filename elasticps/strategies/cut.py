"""Which layers make which stage: pure numbers, the same answer for the same arguments.

A cut of L layers into S stages is S + 1 growing bounds from 0 to L: stage s is the layers from
``cut[s]`` to before ``cut[s + 1]``, at least one.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate

Cut = tuple[int, ...]


def best_cut(
    costs: Sequence[float],
    sizes: Sequence[float],
    limits: Sequence[float],
    *,
    within_first: int = 0,
) -> Cut | None:
    """The cut whose slowest stage is fastest, among those that fit. None where none does.

    ``costs`` are the layers' seconds, ``sizes`` their bytes; stage s may have ``limits[s]`` bytes,
    and there are as many stages as limits. Layer ``within_first`` is in the first stage. Exact, by
    dynamic programming over the layers before each bound (as for the linear partition problem); of
    equals the one whose early stages are shortest. A pipeline's pace is that of its slowest stage
    (Huang et al. 2019, "GPipe", section 2.1).
    """
    count = len(costs)
    seconds = [0.0, *accumulate(costs)]
    nbytes = [0.0, *accumulate(sizes)]
    # best[stop]: the least slowest stage of the stages so far, were they to end before ``stop``.
    best: list[float | None] = [0.0] + [None] * count
    choices: list[list[int]] = []
    for stage, limit in enumerate(limits):
        reached: list[float | None] = [None] * (count + 1)
        begun = [0] * (count + 1)
        least = within_first + 1 if stage == 0 else 1
        for stop in range(least, count + 1):
            for start in range(stop - 1, -1, -1):
                if nbytes[stop] - nbytes[start] > limit:
                    break
                before = best[start]
                if before is None:
                    continue
                slowest = max(before, seconds[stop] - seconds[start])
                known = reached[stop]
                if known is None or slowest <= known:
                    reached[stop], begun[stop] = slowest, start
        best = reached
        choices.append(begun)
    if best[count] is None:
        return None
    bounds = [count]
    for begun in reversed(choices):
        bounds.append(begun[bounds[-1]])
    return tuple(reversed(bounds))


def rows_of_microbatches(count: int, microbatches: int) -> tuple[list[list[int]], list[int]]:
    """Which of ``count`` samples make which microbatch, and how many of each are not padding.

    All are of one length, as a stage's shapes are fixed; what that wants of rows beyond the
    samples are the last one's again, at each microbatch's end. There are as many as asked for,
    or as there are samples. ``count`` is at least 1.
    """
    parts = min(count, microbatches)
    least, longer = divmod(count, parts)
    real = [least + (index < longer) for index in range(parts)]
    length = max(real)
    rows, start = [], 0
    for number in real:
        own = list(range(start, start + number))
        rows.append(own + [own[-1]] * (length - number))
        start += number
    return rows, real
