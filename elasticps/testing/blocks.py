"""A model's blocks as their primaries hold them, in this process: real numbers, no network."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from elasticps.api.optimizer import Optimizer
from elasticps.core.blocks import Hyperparameters
from elasticps.core.ids import Generation
from elasticps.server.tensor_block import TensorBlock
from elasticps.wire.messages import PushMeta, StateMeta, decode, encode
from elasticps.wire.tensors import bytes_of
from elasticps.worker.parameters import BlockMemory, describe, memory_of, plain

State = tuple[StateMeta, memoryview]


class BlockServers:
    """Blocks that start from ``named``'s values and follow their gradients.

    ``local`` is the optimizer made from the same groups and options on the whole parameters;
    everything that would cross the wire is packed and unpacked as it would be there.
    """

    def __init__(
        self,
        named: Sequence[tuple[str, torch.Tensor]],
        local: torch.optim.Optimizer,
        plugin: Optimizer,
        options: dict[str, Any],
        *,
        block_bytes: int = 4096,
    ) -> None:
        self.model = describe(
            named,
            local.param_groups,
            optimizer=type(local).__name__.lower(),
            options=options,
            elementwise=plugin.elementwise,
            block_bytes=block_bytes,
        )
        tensors = dict(named)
        wanted = [tensors[row.name] for row in self.model.parameters]
        self.memory = memory_of(self.model, wanted)
        self.round = 0
        self._plugin = plugin
        self.blocks = [self.fresh(item) for item in self.memory]
        self.give_states([item.initial() for item in self.memory])

    def fresh(self, item: BlockMemory) -> TensorBlock:
        """A block as a new replica has it, before it is given any numbers."""
        parameter = self.model.parameters[item.block.parameter]
        return TensorBlock(item.block, parameter, self.model, self._plugin)

    def changed_options(self, local: torch.optim.Optimizer) -> list[Hyperparameters]:
        """What differs in ``local``'s groups from the model, as a worker would say it."""
        return [
            {key: item for key, item in plain(group).items() if item != described.get(key, item)}
            for group, described in zip(local.param_groups, self.model.groups, strict=True)
        ]

    def step(self, changed: Sequence[Hyperparameters]) -> None:
        """One round with the parameters' present gradients."""
        sent = [encode(PushMeta(Generation(1), 1.0, hyper, 1, None)) for hyper in changed]
        for block, item in zip(self.blocks, self.memory, strict=True):
            hyper = decode(sent[item.group], PushMeta).hyper
            update = item.outgoing(None)
            if update is None:
                block.step(None, hyper)
            else:
                received = torch.frombuffer(bytearray(bytes_of(update)), dtype=torch.uint8)
                block.step(block.gradient_from(received), hyper)
        self.round += 1

    def migrate(self) -> None:
        """Move every block to a new replica; the old one is forgotten."""
        states = self.fetch_states()
        self.blocks = [self.fresh(item) for item in self.memory]
        self.give_states(states)

    def pull(self) -> None:
        """Read every value into the parameters."""
        for block, item in zip(self.blocks, self.memory, strict=True):
            item.value[:] = block.value_bytes()

    def fetch_states(self) -> list[State]:
        dumps = [block.dump() for block in self.blocks]
        return [(decode(encode(meta), StateMeta), memoryview(payload)) for meta, payload in dumps]

    def give_states(self, states: Sequence[State]) -> None:
        for block, (meta, payload) in zip(self.blocks, states, strict=True):
            block.load(decode(encode(meta), StateMeta), memoryview(bytes(payload)))

    def differing(self) -> list[str]:
        """The blocks whose value is not, bit for bit, what the parameters hold."""
        return [
            f"{self.model.parameters[item.block.parameter].name}[{item.block.start}:]"
            for block, item in zip(self.blocks, self.memory, strict=True)
            if block.value_bytes() != bytes(item.value)
        ]
