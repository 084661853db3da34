"""A block's numbers: its value, its optimizer with its state, and both as bytes that can move."""

from __future__ import annotations

import math
import weakref
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

import msgspec
import torch

from elasticps.api.job_codec import JobCodec
from elasticps.api.optimizer import Optimizer
from elasticps.checkpoint.snapshot import MASTER, VALUE
from elasticps.core.blocks import Block, Hyperparameters, Model, Parameter
from elasticps.errors import PluginError, WireError
from elasticps.server.aside import StepAside
from elasticps.server.bare_step import bare_step
from elasticps.server.coded_value import HELD, CodedValue, Difference
from elasticps.server.compute import ComputeThreads, Share
from elasticps.server.doing import Doing
from elasticps.server.gradient_mean import Mean
from elasticps.server.piecewise import PiecewiseStep, alike, is_piecewise
from elasticps.wire.messages import StateMeta, TensorMeta
from elasticps.wire.tensors import bytes_of, dtype_name, dtype_named

MAX_STATE_FACTOR = 16
"""No optimizer here keeps more than a few tensors of its parameter's size."""
MAX_STRIDE = 1 << 62
"""Torch counts elements in 64 bits, also those of a shape with a zero in it."""


class TensorBlock:
    """Elements of one parameter on one server, with the optimizer that updates them.

    An element-wise optimizer sees a flat tensor, any other the whole parameter in its shape. A
    parameter without dimensions stays as it is, for its state has none either.

    A master copy (Micikevicius et al. 2018, "Mixed Precision Training", section 3.1) is float32, as
    is the optimizer's state then, and every gradient once it is here; workers read it rounded to
    the parameter's dtype, to the nearest.

    With a codec for values (``values_codec``) they read what that makes of the value. ``threads``
    share out what is large.
    """

    def __init__(
        self,
        block: Block,
        parameter: Parameter,
        model: Model,
        plugin: Optimizer,
        values_codec: JobCodec | None = None,
        threads: ComputeThreads | None = None,
        doing: Doing | None = None,
    ) -> None:
        self.block = block
        self._what = f"optimizer {model.optimizer} on parameter {parameter.name}, block {block.id}"
        self.group = parameter.group
        flat = model.elementwise and parameter.shape
        self._shape = torch.Size((block.numel,) if flat else parameter.shape)
        self._dtype = dtype_named(parameter.dtype)
        self._kept = torch.float32 if parameter.master else self._dtype
        self._numbers = torch.zeros(self._shape, dtype=self._kept)
        self._under_way: StepAside | None = None
        self._base = with_tuples(model.groups[parameter.group])
        self._options = with_tuples(model.options)
        self._plugin = plugin
        self._optimizer = self._fresh_optimizer()
        # A stranger's may end this process, or hang in it: so its steps are written down.
        self._doing = Doing() if doing is None or self.only_reads_gradients else doing
        self._at = self._doing.sentence(f"step() of {self._what}")
        self._hyper: Hyperparameters = {}
        self._readers: list[weakref.ref[object]] = []
        self._pieces: PiecewiseStep | None = None
        self.threads = threads or ComputeThreads()
        self._coded = CodedValue(self._value, self._dtype, values_codec) if values_codec else None

    def _fresh_optimizer(self) -> torch.optim.Optimizer:
        group = {"params": [self._value], **self._base}
        return self._plugin.create([group], self._options)

    @property
    def _value(self) -> torch.Tensor:
        """The numbers, with no step under way: whoever is not to meet that asks for them so."""
        if self._under_way is not None:
            self.end_step()
        return self._numbers

    @property
    def is_stepping(self) -> bool:
        """Is a step under way beside the event loop?"""
        return self._under_way is not None

    def leave_to(self, step: StepAside) -> None:
        """The step that ``begin`` gave is under way beside the event loop."""
        self._under_way = step

    def end_step(self) -> None:
        """Return when no step is under way any more."""
        step, self._under_way = self._under_way, None
        if step is not None:
            step.finish()

    @property
    def value(self) -> torch.Tensor:
        """The numbers themselves, as the optimizer sees them."""
        return self._value

    @property
    def optimizer(self) -> torch.optim.Optimizer:
        """The one that steps this block alone."""
        return self._optimizer

    @property
    def options_in_use(self) -> Hyperparameters:
        """The param group's options as of the last step."""
        group: Hyperparameters = self._optimizer.param_groups[0]
        return group

    def stand_in(self, values: list[torch.Tensor]) -> torch.optim.Optimizer:
        """An optimizer with this one's options over several blocks' values and without a state, by
        torch's kernels for lists of tensors."""
        options = {"foreach": True} if not self.options_in_use.get("fused") else {}
        made = alike(self._optimizer)
        made.param_groups = [{**self.options_in_use, **options, "params": values}]
        made.state = defaultdict(dict)
        return made

    @property
    def dtype(self) -> torch.dtype:
        return self._dtype

    @property
    def nbytes(self) -> int:
        """Bytes of the value as workers read it."""
        return self.block.nbytes

    @property
    def nbytes_kept(self) -> int:
        """Bytes of the value as it is here, and of a gradient that is to be applied to it."""
        return self._numbers.nbytes

    @property
    def nbytes_held(self) -> int:
        """Bytes of the value and of the optimizer's tensors."""
        coded = self._coded.nbytes_held if self._coded else 0
        return self.nbytes_kept + coded + sum(tensor.nbytes for _, tensor in self._state_tensors())

    def value_bytes(self) -> memoryview:
        """The value as workers read it, not copied, and not to be written to.

        It stays as it is for as long as it or a part of it is held, by a socket that sends it, say:
        a later step changes the value in other memory then.
        """
        if self._coded is not None:
            return bytes_of(self._coded.held.to(self._dtype, copy=True))
        if self._kept != self._dtype:
            return bytes_of(self._value.to(self._dtype))
        view = bytes_of(self._value)
        self._readers.append(weakref.ref(view.obj))
        return view

    def leave_to_readers(self) -> None:
        """To be called before the value changes: who reads it yet keeps the memory as it is."""
        self.end_step()
        if any(reader() is not None for reader in self._readers):
            self.leave_pieces()
            self._value.data = self._value.clone()
        self._readers.clear()

    def leave_pieces(self) -> None:
        """To be called before a step that is not made of them: they count their own steps."""
        if self._pieces is not None:
            self._pieces.close()
            self._pieces = None

    def write_value(self, target: torch.Tensor) -> None:
        """Copy what workers read to ``target``, a uint8 tensor of ``nbytes``."""
        read = self._read
        if read.dtype != self._dtype:
            target.view(self._dtype).copy_(read.view(-1))
        else:  # as bytes: the processor copies them without reading what was in the target
            self.threads.copy(bytes_of(target), bytes_of(read))

    def difference_from(self, holds: int | None) -> Difference | None:
        """What a worker with the value of digest ``holds`` lacks; None: only all of it helps."""
        return self._coded.difference_from(holds) if self._coded else None

    @property
    def _read(self) -> torch.Tensor:
        return self._coded.held if self._coded else self._value

    @property
    def only_reads_gradients(self) -> bool:
        """Does the optimizer leave a gradient as it is? Torch's do; of others nobody knows."""
        return type(self._optimizer).__module__.startswith("torch.optim.")

    def gradient_from(self, payload: torch.Tensor) -> torch.Tensor:
        """A worker's bytes (a uint8 tensor of ``nbytes``) as a gradient of the value."""
        return self._fitted(payload.view(self._dtype))

    def replicated(self, payload: torch.Tensor) -> torch.Tensor:
        """Another replica's bytes (``nbytes_kept``) as a gradient of the value."""
        return payload.view(self._kept).view(self._shape)

    def gradient_of(self, flat: torch.Tensor | None) -> torch.Tensor | None:
        """A gradient that was summed in another dtype or shape as one of the value's."""
        return None if flat is None else self._fitted(flat)

    def _fitted(self, gradient: torch.Tensor) -> torch.Tensor:
        """In the dtype and shape of the value, as it most often is."""
        if gradient.dtype is not self._kept:
            gradient = gradient.to(self._kept)
        return gradient if gradient.shape == self._shape else gradient.view(self._shape)

    @property
    def is_piecewise(self) -> bool:
        """Is a step made piece by piece, with the options of the last?"""
        return is_piecewise(self._optimizer, self._numbers)

    @property
    def sums_pieces(self) -> bool:
        """Are gradients like the value, and summed best where they are applied?"""
        return self._kept == self._dtype and self.is_piecewise

    def step(
        self,
        gradient: torch.Tensor | Mean | None,
        hyper: Hyperparameters,
        into: Sequence[torch.Tensor] = (),
    ) -> bool:
        """One optimizer step; ``hyper`` is what differs from the group's options in the model.

        ``gradient`` None means that no worker had a gradient; the optimizer may write to it.
        ``into``: where ``write_value`` is asked to write next. Returns whether that has been done.
        Raises WireError for an option that the group does not have, PluginError when the optimizer
        fails: the value has no meaning then.
        """
        share = self.begin(gradient, hyper, into)
        if share is not None:
            self.threads.share_out_each([share])
            return bool(into) and self.gives_pieces
        if gradient is not None:
            self.leave_to_readers()
            self._value.grad = gradient.whole if isinstance(gradient, Mean) else gradient
            self._doing.begin(self._at)
            try:
                bare_step(self._optimizer)
            # An optimizer may raise anything; its job alone ends.
            except (Exception, SystemExit) as error:
                raise self._failed(error) from error
            finally:
                self._doing.end()
                self._value.grad = None
            self._check_value()
        self.code_value()
        return False

    def _check_value(self) -> None:
        if self._value.shape != self._shape or self._value.dtype != self._kept:
            found = f"{tuple(self._value.shape)} of {dtype_name(self._value.dtype)}"
            raise PluginError(
                f"step() gave it another shape or dtype: {found}",
                where=self._what,
                limit=f"{tuple(self._shape)} of {dtype_name(self._kept)}",
            )

    def begin(
        self,
        gradient: torch.Tensor | Mean | None,
        hyper: Hyperparameters,
        into: Sequence[torch.Tensor] = (),
        *,
        in_one: bool = False,
    ) -> Share | None:
        """As ``step``, where that is to be made piece by piece; else None, and the options alone
        are taken. What the optimizer raises the share's end raises. ``in_one``: in one piece, where
        that takes no longer."""
        self.end_step()
        self.check_options(hyper)
        self.use(hyper)
        if gradient is None or not self.is_piecewise:
            return None
        self.leave_to_readers()
        if self._pieces is None:
            self._pieces = PiecewiseStep(self._value, self._optimizer, self.threads)
        pieces = self._pieces

        def ended(error: Exception | None) -> None:
            if error is not None:
                raise self._failed(error) from error
            pieces.gather()
            self.code_value()

        if in_one and pieces.is_one_pass and not isinstance(gradient, Mean):
            return Share(1, pieces.whole(gradient), ended)
        return Share(*pieces.share(gradient, into if self.gives_pieces else ()), ended)

    @property
    def gives_pieces(self) -> bool:
        """Do workers read the value as it is here, so that each piece can be given at once?"""
        return self._coded is None and self._kept == self._dtype

    def code_value(self) -> None:
        """To be called after a round has changed the value: workers read the next difference."""
        if self._coded is not None:
            self._coded.follow(self._value)

    def _failed(self, error: BaseException) -> PluginError:
        return PluginError(f"step() failed: {type(error).__name__}: {error}", where=self._what)

    def check_options(self, hyper: Hyperparameters) -> None:
        """Raise WireError for an option that the param group in the model does not have, and for
        one that is a number there and no number here: no optimizer could make a step with it."""
        unknown = sorted(hyper.keys() - self._base.keys())
        if unknown:
            raise WireError(f"the param group has no option {unknown[0]}", field="hyper")
        for key, item in hyper.items():
            if isinstance(self._base[key], int | float) and not isinstance(item, int | float):
                kind = type(item).__name__
                raise WireError(f"option {key} is a {kind}", field="hyper", limit="a number")

    def use(self, hyper: Hyperparameters) -> None:
        """Take the options that differ from the group's in the model; they have been checked."""
        self._hyper = hyper
        self._optimizer.param_groups[0].update({**self._base, **with_tuples(hyper)})

    def dump(self, *, for_replica: bool = False) -> tuple[StateMeta, bytes]:
        """Value and optimizer state, copied out as one payload with its description.

        ``for_replica``: what workers hold of it too, where values are coded.
        """
        tensors = [(VALUE, self._value), *self._state_tensors()]
        if for_replica and self._coded is not None:
            tensors.append((HELD, self._coded.held))
        payload = b"".join(bytes_of(tensor.contiguous()) for _, tensor in tensors)
        return self._described(tensors), payload

    def for_file(self) -> tuple[StateMeta, list[torch.Tensor]]:
        """Value and optimizer state with their description, not copied: the value in the
        parameter's dtype, and a master copy as a tensor of its own."""
        tensors = [(VALUE, self._value), *self._state_tensors()]
        if self._kept != self._dtype:
            tensors[:1] = [(VALUE, self._value.to(self._dtype)), (MASTER, self._value)]
        return self._described(tensors), [tensor.detach() for _, tensor in tensors]

    def _described(self, tensors: Sequence[tuple[str, torch.Tensor]]) -> StateMeta:
        rows = tuple(
            TensorMeta(key, dtype_name(tensor.dtype), tuple(tensor.shape), tensor.nbytes)
            for key, tensor in tensors
        )
        return StateMeta(tensors=rows, scalars=self._state_scalars(), hyper=self._hyper)

    def holds(self, meta: StateMeta, payload: memoryview) -> bool:
        """Are these the value and the optimizer state that the block has, to the bit?"""
        own, numbers = self.dump()
        if self._kept != self._dtype:
            meta, payload = _widened(meta, payload, self._kept)
        rows, own_rows = (
            [(row.key, row.dtype, row.nbytes) for row in each.tensors] for each in (meta, own)
        )
        return payload == numbers and rows == own_rows and meta.scalars == own.scalars

    def load(self, meta: StateMeta, payload: memoryview) -> None:
        """Replace value and optimizer state by what ``dump`` made; raises WireError otherwise."""
        tensors = _unpacked(meta, payload)
        value, held = tensors.pop(VALUE, None), tensors.pop(HELD, None)
        fits = value is not None and value.numel() == self.block.numel
        if value is None or not fits or value.dtype not in (self._dtype, self._kept):
            raise WireError("the value does not fit the block", field="tensors")
        self.check_options(meta.hyper)
        self.leave_to_readers()
        self._value.copy_(value.view(self._value.shape))
        self.leave_pieces()
        # A state may hold less than the one it replaces, and nothing of that one may stay.
        self._optimizer = self._fresh_optimizer()
        self.use(meta.hyper)
        if tensors or meta.scalars:
            shaped = {key: self._shaped(tensor) for key, tensor in tensors.items()}
            self._optimizer.state[self._value] = {**shaped, **meta.scalars}
        if self._coded is not None:
            self._coded.restart(self._value if held is None else held)

    def _shaped(self, tensor: torch.Tensor) -> torch.Tensor:
        """A worker sends flat whatever has an element for each of the value's."""
        return tensor.view(self._value.shape) if tensor.shape == (self.block.numel,) else tensor

    def _state(self) -> dict[str, Any]:
        state: dict[str, Any] = self._optimizer.state.get(self._value, {})
        return state

    def _state_tensors(self) -> list[tuple[str, torch.Tensor]]:
        return [(key, item) for key, item in self._state().items() if torch.is_tensor(item)]

    def _state_scalars(self) -> dict[str, float | int | bool | None]:
        scalars = {key: item for key, item in self._state().items() if not torch.is_tensor(item)}
        for key, item in scalars.items():
            if not isinstance(item, float | int | bool | None):
                name = type(self._optimizer).__name__
                raise PluginError(
                    f"its state {key} is a {type(item).__name__}, which cannot move with a block",
                    where=name,
                    field=key,
                    limit="tensors and plain numbers",
                )
        return scalars


def _unpacked(meta: StateMeta, payload: memoryview) -> dict[str, torch.Tensor]:
    """The tensors that ``meta`` describes, copied out of ``payload``."""
    tensors: dict[str, torch.Tensor] = {}
    offset = 0
    for row in meta.tensors:
        if row.key in tensors:
            raise WireError(f"two tensors are named {row.key}", field="tensors")
        _check_row(row, len(payload) - offset)
        tensor = torch.empty(row.shape, dtype=dtype_named(row.dtype))
        bytes_of(tensor)[:] = payload[offset : offset + row.nbytes]
        tensors[row.key] = tensor
        offset += row.nbytes
    if offset != len(payload):
        raise WireError("bytes left over after the last tensor", field="payload_length")
    return tensors


def _widened(
    meta: StateMeta, payload: memoryview, kept: torch.dtype
) -> tuple[StateMeta, memoryview]:
    """The same with the value as a master copy: a worker's first one has the parameter's dtype."""
    tensors = _unpacked(meta, payload)
    if VALUE in tensors:
        tensors[VALUE] = tensors[VALUE].to(kept)
    rows = tuple(
        TensorMeta(key, dtype_name(item.dtype), tuple(item.shape), item.nbytes)
        for key, item in tensors.items()
    )
    numbers = b"".join(bytes_of(item.contiguous()) for item in tensors.values())
    return msgspec.structs.replace(meta, tensors=rows), memoryview(numbers)


def _check_row(row: TensorMeta, available: int) -> None:
    """Nothing is allocated for a tensor whose description does not fit the bytes at hand."""
    try:
        width = dtype_named(row.dtype).itemsize
    except ValueError as error:
        raise WireError(f"tensor {row.key}: {error}", field="dtype") from error
    stride = math.prod(max(extent, 1) for extent in row.shape)
    if min(row.shape, default=0) < 0 or stride > MAX_STRIDE:
        raise WireError(f"tensor {row.key} cannot have this shape", field="shape")
    if math.prod(row.shape) * width != row.nbytes or row.nbytes > available:
        raise WireError(f"tensor {row.key} does not fit its bytes", field="nbytes")


def with_tuples(hyper: Hyperparameters) -> Hyperparameters:
    """Lists back to tuples: the wire has no tuples, and torch compares betas with them."""
    return {key: tuple(item) if isinstance(item, list) else item for key, item in hyper.items()}
