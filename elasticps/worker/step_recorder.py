"""Some of a worker's steps recorded, when its daemon asks: forward, backward, step and waits.

The hooks are on the model while it is recorded and at no other time.
"""

from __future__ import annotations

import time
from typing import Any

import torch
from torch.utils.hooks import RemovableHandle

from elasticps.errors import PeerUnavailable
from elasticps.wire.control_messages import RecordSpans
from elasticps.wire.recorded import recorded
from elasticps.wire.spans import Spans
from elasticps.worker.agent import Agent
from elasticps.worker.data_loop import DataLoop


class StepRecorder:
    """``is_asked`` while there is something to do between two steps; ``model`` may come later."""

    def __init__(self, loop: DataLoop, agent: Agent) -> None:
        self.is_asked = False
        self.model: torch.nn.Module | None = None
        self._loop = loop
        self._agent = agent
        self._spans = agent.spans
        self._asked: RecordSpans | None = None
        self._hooks: ModelHooks | None = None
        self._began_ns = 0
        self._left = 0
        agent.on_record = self._on_record

    def stepped(self, round_: int) -> None:
        """A step has ended; ``round_`` is the round that it ended with. On the script's thread."""
        asked = self._asked
        if self._hooks is not None:
            self._hooks.end_backward()
            self._spans.add("step", self._began_ns, time.monotonic_ns(), round_=round_)
            self._left -= 1
            if self._left == 0 or not self._spans.on:
                self.close()
        elif asked is None or self.model is None:
            self.is_asked = False
        else:
            self._left = asked.steps
            self._spans.start(asked.most, asked.seconds)
            self._hooks = ModelHooks(self.model, self._spans)
        self._began_ns = time.monotonic_ns()

    def close(self) -> None:
        """End a recording, should there be one, and hand it in. On the script's thread."""
        self.is_asked = False
        if self._hooks is not None:
            self._hooks.remove()
            self._hooks = None

        async def hand_in() -> None:
            self._hand_in()

        if self._asked is not None:
            self._loop.call(hand_in())

    def _on_record(self, asked: RecordSpans) -> None:
        """The daemon asks for some steps, or for what there is. On the data loop."""
        if asked.steps == 0:
            self._hand_in()
        elif self._asked is None:
            self._asked = asked
        self.is_asked = True

    def _hand_in(self) -> None:
        asked, self._asked = self._asked, None
        if asked is None:
            return
        try:
            for part in recorded(asked.job, self._spans):
                self._agent.recorded(part)
        except PeerUnavailable:
            return  # the daemon that asked is gone


class ModelHooks:
    """Records each call of a model, and the time from its output's gradient to its last one's.

    Where another module than the model is called, backward begins with the first gradient.
    """

    def __init__(self, model: torch.nn.Module, spans: Spans) -> None:
        self._spans = spans
        self._is_removed = False
        self._forward_ns = 0
        self._backward_ns = self._gradient_ns = 0
        self._handles: list[RemovableHandle] = [
            model.register_forward_pre_hook(self._before_forward),
            model.register_forward_hook(self._after_forward),
        ]
        self._handles += [
            parameter.register_post_accumulate_grad_hook(  # type: ignore[no-untyped-call]
                self._has_gradient
            )
            for parameter in model.parameters()
            if parameter.requires_grad and parameter.is_leaf
        ]

    def end_backward(self) -> None:
        """No more gradients come of the last call."""
        if self._gradient_ns:
            self._spans.add("backward", self._backward_ns or self._gradient_ns, self._gradient_ns)
        self._backward_ns = self._gradient_ns = 0

    def remove(self) -> None:
        self._is_removed = True
        for handle in self._handles:
            handle.remove()

    def __deepcopy__(self, _: Any) -> ModelHooks:
        """A copy of the model has the hooks too; they do nothing once they are removed."""
        return self

    def _before_forward(self, *_: Any) -> None:
        self.end_backward()
        self._forward_ns = time.monotonic_ns()

    def _after_forward(self, module: torch.nn.Module, inputs: Any, output: Any) -> None:
        if self._is_removed:
            return
        self._spans.end("forward", self._forward_ns)
        first = _first_tensor(output)
        if first is not None:
            handle = first.register_hook(self._begin_backward)  # type: ignore[no-untyped-call]
            self._handles.append(handle)

    def _begin_backward(self, _: torch.Tensor) -> None:
        self._backward_ns = self._backward_ns or time.monotonic_ns()

    def _has_gradient(self, _: torch.Tensor) -> None:
        self._gradient_ns = time.monotonic_ns()
        self._backward_ns = self._backward_ns or self._gradient_ns


def _first_tensor(output: Any) -> torch.Tensor | None:
    """The first tensor with a gradient of a model's output, which may be a tuple or a dict."""
    if isinstance(output, torch.Tensor):
        return output if output.requires_grad else None
    items = output.values() if isinstance(output, dict) else output
    if not isinstance(items, tuple | list) and not isinstance(output, dict):
        return None
    return next((found for item in items if (found := _first_tensor(item)) is not None), None)
