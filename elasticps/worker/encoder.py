"""What a worker's pushes carry: each block's gradient, coded, and what coding it has lost."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from elasticps.api.job_codec import JobCodec
from elasticps.core.audit import mix
from elasticps.core.ids import BlockId, Seq, WorkerId
from elasticps.wire.tensors import bytes_of
from elasticps.worker.parameters import BlockMemory


@dataclass(frozen=True, slots=True)
class _Coded:
    """A step's payload of one block; ``lost`` is the residual if the push counts."""

    payload: memoryview
    lost: torch.Tensor | None


class Encoder:
    """Codes a step's gradients once, however often they are pushed (``codec`` None: not at all).

    Error feedback (Seide et al. 2014, section 3; Karimireddy et al. 2019, algorithm 2): what coding
    loses of a block, its *residual*, is added to the block's next gradient. It changes only when a
    round has counted the push: a round that goes on without this worker takes nothing from it. So
    the decoded pushes that counted and the residual add up to the gradients of those pushes. It is
    the worker's own: it stays where it is when blocks move, and ends with the worker.
    """

    def __init__(self, codec: JobCodec | None, worker: WorkerId) -> None:
        self.pushed_bytes = 0
        self.gradient_bytes = 0
        self._codec = codec
        self._worker = worker
        self._step: dict[BlockId, _Coded] = {}
        self._residuals: dict[BlockId, torch.Tensor] = {}

    @property
    def sends_gradients(self) -> bool:
        """Are gradients sent as they are, uncoded?"""
        return self._codec is None

    def payload(self, memory: BlockMemory, seq: Seq, update: torch.Tensor) -> memoryview:
        """The bytes to push for one block in step ``seq``, of what is outgoing of it.

        Raises PluginError.
        """
        payload = bytes_of(update) if self._codec is None else self._coded(memory, update, seq)
        self.pushed_bytes += len(payload)
        self.gradient_bytes += memory.block.nbytes
        return payload

    def residual(self, block: BlockId) -> torch.Tensor | None:
        """What is yet to be sent of a block, flat float32; None for nothing."""
        return self._residuals.get(block)

    def settle(self, *, counted: bool) -> None:
        """The step is over: the round has counted its pushes, or not."""
        if counted:
            self._residuals.update(
                (block, coded.lost) for block, coded in self._step.items() if coded.lost is not None
            )
        self._step.clear()

    def _coded(self, memory: BlockMemory, update: torch.Tensor, seq: Seq) -> memoryview:
        block = memory.block.id
        coded = self._step.get(block)
        if coded is None:
            coded = self._step[block] = self._encoded(block, update.to(torch.float32), seq)
        return coded.payload

    def _encoded(self, block: BlockId, gradient: torch.Tensor, seq: Seq) -> _Coded:
        codec = self._codec
        assert codec is not None
        residual = self._residuals.get(block)
        if residual is not None:
            gradient = gradient + residual
        payload = codec.encode(gradient, mix(mix(mix(self._worker) ^ block) ^ seq))
        if not codec.error_feedback:
            return _Coded(payload, None)
        return _Coded(payload, gradient - codec.decode(payload, gradient.numel()))
