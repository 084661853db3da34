"""One stage of a pipeline on ``torch.distributed.pipelining``, between peers of the job.

What torch wants of a process group is two calls: send, and receive. Here they put on the worker's
shelf and fetch from the others', so that there is nothing to set up when members change, and what
waits ends by the ledger's word, as every fetch does. The group is no member of anybody's default
group; what torch keeps in private for that is touched in this file alone.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, Self

import torch
import torch.distributed
from torch import nn
from torch.distributed import GroupMember, ProcessGroup, Work
from torch.distributed.distributed_c10d import _world
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from elasticps.api.strategy import Fetching, Peers
from elasticps.errors import UsageError

SCHEDULES = {"1f1b": Schedule1F1B, "gpipe": ScheduleGPipe}
Losses = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class Shapes:
    """What goes into a stage, and out of it, for each microbatch: tensors on the meta device."""

    inputs: torch.Tensor
    outputs: torch.Tensor


class StageGroup(ProcessGroup):
    """The stages of one pipeline, for one pass. ``with`` it: on leaving, nothing is fetched.

    ``ranks`` are the workers' by stage. ``prefix`` is of this pass, and the same in all stages.
    """

    def __init__(self, peers: Peers, ranks: Sequence[int], stage: int, prefix: str) -> None:
        super().__init__(stage, len(ranks))  # type: ignore[call-arg]
        self._peers = peers
        self._ranks = ranks
        self._stage = stage
        self._prefix = prefix
        self._sent: dict[int, int] = {}
        self._received: dict[int, int] = {}
        self._fetching: list[Fetching] = []

    def __enter__(self) -> Self:
        # Torch asks this of any group but the default one: stages are their own "global" ranks.
        _world.pg_group_ranks[self] = {stage: stage for stage in range(len(self._ranks))}
        return self

    def __exit__(self, *_: object) -> None:
        _world.pg_group_ranks.pop(self, None)
        for fetching in self._fetching:
            fetching.cancel()

    def send(self, tensors: list[torch.Tensor], to_stage: int, tag: int) -> Work:
        """Put a tensor on the shelf: whoever waits for it gets it at once."""
        number = self._sent[to_stage] = self._sent.get(to_stage, 0) + 1
        self._peers.put(self._key(self._stage, to_stage, number), tensors[0])
        return _Done()

    def recv(self, tensors: list[torch.Tensor], from_stage: int, tag: int) -> Work:
        number = self._received[from_stage] = self._received.get(from_stage, 0) + 1
        key = self._key(from_stage, self._stage, number)
        fetching = self._peers.start_fetch(self._ranks[from_stage], key)
        self._fetching.append(fetching)
        return _Received(fetching, tensors[0])

    def _key(self, from_stage: int, to_stage: int, number: int) -> str:
        return f"{self._prefix}/{from_stage}-{to_stage}/{number}"


class _Done(Work):
    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        return True


class _Received(Work):
    def __init__(self, fetching: Fetching, into: torch.Tensor) -> None:
        super().__init__()
        self._fetching = fetching
        self._into = into

    def wait(self, timeout: timedelta = timedelta(0)) -> bool:
        fetched = self._fetching.wait()
        if (fetched.shape, fetched.dtype) != (self._into.shape, self._into.dtype):
            raise UsageError(
                f"a stage sent {tuple(fetched.shape)} of {fetched.dtype}",
                field="layers",
                limit=f"{tuple(self._into.shape)} of {self._into.dtype}, as on the meta device",
            )
        with torch.no_grad():
            self._into.copy_(fetched)
        return True


def run_stage(
    group: StageGroup,
    layers: Sequence[nn.Module],
    shapes: Shapes,
    microbatches: int,
    schedule: str,
    loss_of: Losses,
    *,
    inputs: torch.Tensor | None,
    targets: torch.Tensor | None,
) -> list[torch.Tensor]:
    """A pass, forward and backward, through this worker's stage; gradients add up in ``.grad``.

    The first stage is given ``inputs``, the last one ``targets``, each of all microbatches. Returns
    the last stage's losses by microbatch: of their sum the gradients are.
    """
    stage, stages = group.rank(), group.size()
    # One-forward-one-backward with fewer microbatches than stages has no steady state to speak of.
    chosen = SCHEDULES[schedule] if microbatches >= stages else ScheduleGPipe
    part = _stage(group, nn.Sequential(*layers), shapes)
    runner: Any = chosen(part, microbatches, loss_fn=loss_of, scale_grads=False)
    losses: list[torch.Tensor] = []
    given = () if inputs is None else (inputs,)
    last = {} if targets is None else {"target": targets, "losses": losses}
    with torch.enable_grad():
        runner.step(*given, return_outputs=False, **last)
    assert (stage == stages - 1) == bool(losses)
    return [loss.detach() for loss in losses]


def _stage(group: StageGroup, module: nn.Module, shapes: Shapes) -> PipelineStage:
    stage, stages = group.rank(), group.size()
    # Made as if by a process outside of the group: any other is asked for its default group.
    outside: Any = GroupMember.NON_GROUP_MEMBER
    made = PipelineStage(
        module,
        stage,
        stages,
        torch.device("cpu"),
        input_args=shapes.inputs.detach().requires_grad_(stage > 0),
        output_args=shapes.outputs.detach().requires_grad_(),
        group=outside,
    )
    made.group, made.group_rank, made.group_size = group, stage, stages
    made.stage_index_to_group_rank = {each: each for each in range(stages)}
    return made
