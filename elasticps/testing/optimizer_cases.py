"""What every optimizer plugin must do, checked on blocks as shard servers hold them."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from elasticps import __version__
from elasticps.api.optimizer import Optimizer
from elasticps.checkpoint.snapshot import VALUE, Snapshot, read, write
from elasticps.core.blocks import MIN_BLOCK_BYTES
from elasticps.core.ids import Round
from elasticps.errors import ElasticError, PluginError, UsageError
from elasticps.server.tensor_block import MAX_STATE_FACTOR
from elasticps.testing.blocks import BlockServers
from elasticps.testing.kit import Case, ContractBroken, Subject, require
from elasticps.worker.optimizer_state import by_block, by_parameter

Shape = tuple[int, ...]
SHAPES: tuple[Shape, ...] = (
    (),
    (1,),
    (7,),
    (1, 13),
    (9, 1),
    (3, 5, 7),
    (1009,),
    (33, 65),
)
"""None is a multiple of a block or of a vector register; 7, 13 and 2081 are prime."""
HALF_DTYPES = (torch.bfloat16, torch.float16)
"""An epsilon of 1e-8 is zero in float16, which is no fault of the plugin."""
OPTIONAL_DTYPES = (torch.float64, *HALF_DTYPES)
SMALL = ((7,), (5, 3))
UNKNOWN_OPTION = "no_such_option_exists"
BLOCK_BYTES = MIN_BLOCK_BYTES
STATE_SLACK = 1 << 10
STEPS = 4


class Training:
    """A model's blocks under the plugin, each replica of which a case makes anew.

    Gradients are drawn from ``seed``: two trainings that take as many steps get the same ones.
    """

    def __init__(
        self,
        subject: Subject,
        *,
        shapes: Sequence[Shape] = SHAPES,
        dtype: torch.dtype = torch.float32,
        block_bytes: int = BLOCK_BYTES,
    ) -> None:
        self.plugin: Optimizer = subject.load()
        self._random = torch.Generator().manual_seed(7)
        self.shapes = _taken(self.plugin, subject, shapes)
        self.parameters = [self._draw(shape, dtype) for shape in self.shapes]
        named = [(f"p{index}", item) for index, item in enumerate(self.parameters)]
        local = self.plugin.create([{"params": list(self.parameters)}], subject.options)
        self.local = local
        self.servers = BlockServers(
            named, local, self.plugin, subject.options, block_bytes=block_bytes
        )

    def _draw(self, shape: Shape, dtype: torch.dtype) -> torch.Tensor:
        return torch.randn(shape, generator=self._random).to(dtype)

    def give_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = self._draw(tuple(parameter.shape), parameter.dtype)

    def steps(self, count: int) -> None:
        """So many rounds on the blocks; the parameters themselves stay as they are."""
        for _ in range(count):
            self.give_gradients()
            self.servers.step(self.servers.changed_options(self.local))

    def values(self) -> list[bytes]:
        return [bytes(block.value_bytes()) for block in self.servers.blocks]

    def dumps(self) -> list[tuple[Any, bytes]]:
        """Value and state of every block, as they would be sent."""
        return [(meta, bytes(payload)) for meta, payload in self.servers.fetch_states()]


def _taken(plugin: Optimizer, subject: Subject, shapes: Sequence[Shape]) -> list[Shape]:
    """Those of ``shapes`` that the plugin does not refuse with a UsageError; at least one."""
    taken = []
    for shape in shapes:
        try:
            plugin.create([{"params": [torch.zeros(shape)]}], subject.options)
        except PluginError:
            raise
        except UsageError:
            continue
        taken.append(shape)
    require(bool(taken), f"it refuses every parameter of {', '.join(map(str, shapes))}")
    return taken


def unknown_options_are_refused(subject: Subject) -> None:
    """A mistyped option raises TypeError, ValueError or one of elasticps's own errors."""
    plugin = subject.load()
    parameters = [torch.zeros(shape) for shape in _taken(plugin, subject, SMALL)]
    try:
        plugin.create([{"params": parameters}], {**subject.options, UNKNOWN_OPTION: "nonsense"})
    except (TypeError, ValueError, ElasticError):
        return
    require(False, f"create() takes an option {UNKNOWN_OPTION} that nobody knows")


def options_are_plain_and_change_by_group(subject: Subject) -> None:
    """A param group holds plain values alone, so that servers can be told a scheduler's change."""
    training = Training(subject, shapes=SMALL)
    (group,) = training.local.param_groups
    if not isinstance(group.get("lr"), float):
        return
    other = Training(subject, shapes=SMALL)
    other.local.param_groups[0]["lr"] = group["lr"] * 4
    training.steps(STEPS)
    other.steps(STEPS)
    require(training.values() != other.values(), "a changed lr of the param group changes nothing")


def replicas_are_equal_bit_for_bit(subject: Subject) -> None:
    """Equal gradients give equal numbers, whatever else the process does meanwhile."""
    one, other = Training(subject), Training(subject)
    neighbour = Training(subject, shapes=[(5, 3)])
    with torch.random.fork_rng():
        for number in range(STEPS):
            torch.manual_seed(number)
            one.steps(1)
            neighbour.steps(1)
            torch.manual_seed(number + 1000)
            other.steps(1)
    require(one.dumps() == other.dumps(), "two replicas differ after the same gradients")


def state_is_tensors_and_plain_numbers(subject: Subject) -> None:
    """What the optimizer keeps can be sent, under keys of its own, and is no more than allowed."""
    training = Training(subject)
    training.steps(STEPS)
    for (meta, payload), block in zip(training.dumps(), training.servers.blocks, strict=True):
        keys = [row.key for row in meta.tensors]
        require(keys.count(VALUE) == 1, f"its state has a key {VALUE!r}, which is the block's own")
        require(not set(keys) & set(meta.scalars), "a key of its state is a tensor and a number")
        require(
            len(payload) <= block.nbytes * MAX_STATE_FACTOR + STATE_SLACK,
            f"it keeps {len(payload)} bytes for a block of {block.nbytes}"
            f" (limit: {MAX_STATE_FACTOR} times the block)",
        )


def block_that_moves_goes_on_as_if_it_had_not(subject: Subject) -> None:
    """All that matters is in the state: a new replica made of it takes the same steps."""
    stayed, moved = Training(subject), Training(subject)
    for _ in range(3):
        stayed.steps(STEPS)
        moved.steps(STEPS)
        moved.servers.migrate()
        require(stayed.dumps() == moved.dumps(), "the numbers differ once the block has moved")
    stayed.steps(1)
    moved.steps(1)
    require(
        stayed.dumps() == moved.dumps(), "the step after a move differs from that of who stayed"
    )


def checkpoint_round_trip_changes_nothing(subject: Subject) -> None:
    """Written to a file by parameter and read back, training goes on bit for bit."""
    went_on, resumed = Training(subject), Training(subject)
    went_on.steps(STEPS)
    resumed.steps(STEPS)
    _save_and_resume(resumed)
    require(went_on.dumps() == resumed.dumps(), "state read from a checkpoint differs")
    went_on.steps(STEPS)
    resumed.steps(STEPS)
    require(went_on.dumps() == resumed.dumps(), "steps after a checkpoint differ")


def _save_and_resume(training: Training) -> None:
    servers = training.servers
    servers.pull()
    by_name = dict(
        zip([row.name for row in servers.model.parameters], training.parameters, strict=True)
    )
    state = by_parameter(servers.memory, servers.fetch_states())
    snapshot = Snapshot(
        job="conformance",
        owner="case",
        round=Round(servers.round),
        model=servers.model,
        data=None,
        values=by_name,
        state={name: state.get(item, {}) for name, item in by_name.items()},
    )
    with tempfile.TemporaryDirectory() as directory:
        found = read(write(Path(directory) / "saved", snapshot, version=__version__))
    servers.blocks = [servers.fresh(item) for item in servers.memory]
    for name, parameter in by_name.items():
        parameter.copy_(found.values[name])
    servers.give_states(
        by_block(servers.memory, {by_name[name]: dict(item) for name, item in found.state.items()})
    )


def gradients_are_not_written_to(subject: Subject) -> None:
    """Replicas get the same gradient; one that writes into it changes another's."""
    training = Training(subject)
    for _ in range(STEPS):
        training.give_gradients()
        given = [item.grad for item in training.parameters]
        before = [item.clone() for item in given if item is not None]
        training.local.step()
        for item, gradient, kept in zip(training.parameters, given, before, strict=True):
            require(
                gradient is not None and torch.equal(gradient, kept),
                f"step() writes into the gradient of a parameter of shape {tuple(item.shape)}",
            )


def pieces_are_updated_as_the_whole(subject: Subject) -> None:
    """An element-wise optimizer gives a block what it would give those elements of the whole."""
    training = Training(subject)
    require(
        isinstance(training.plugin.elementwise, bool),
        "elementwise is neither True nor False",
    )
    for _ in range(STEPS):
        training.give_gradients()
        training.servers.step(training.servers.changed_options(training.local))
        training.local.step()
        require(
            not training.servers.differing(),
            f"blocks {training.servers.differing()} differ from the same elements of the whole"
            " parameter; is it element-wise?",
        )


def odd_shapes_and_dtypes_keep_theirs(subject: Subject) -> None:
    """float32 must work; another dtype works, or is refused with an error, and never changes."""
    _keeps_its_dtype(subject, torch.float32)
    for dtype in OPTIONAL_DTYPES:
        try:
            _keeps_its_dtype(subject, dtype)
        except ContractBroken:
            raise
        except (TypeError, ValueError, PluginError, RuntimeError):
            continue  # refused, and the user is told


def _keeps_its_dtype(subject: Subject, dtype: torch.dtype) -> None:
    training = Training(subject, dtype=dtype)
    training.steps(STEPS)
    training.servers.migrate()
    training.servers.pull()
    for shape, value in zip(training.shapes, training.parameters, strict=True):
        require(
            value.dtype == dtype and tuple(value.shape) == shape,
            f"shape {shape} of {dtype} became {tuple(value.shape)} of {value.dtype}",
        )
        finite = dtype in HALF_DTYPES or bool(value.isfinite().all())
        require(finite, f"shape {shape} of {dtype} has values that are not finite")


CASES = (
    Case(check=unknown_options_are_refused, quick=True),
    Case(check=options_are_plain_and_change_by_group, quick=True),
    Case(check=state_is_tensors_and_plain_numbers, quick=True),
    Case(check=replicas_are_equal_bit_for_bit, quick=True),
    Case(check=block_that_moves_goes_on_as_if_it_had_not, quick=True),
    Case(check=gradients_are_not_written_to, quick=True),
    Case(check=pieces_are_updated_as_the_whole),
    Case(check=odd_shapes_and_dtypes_keep_theirs),
    Case(check=checkpoint_round_trip_changes_nothing),
)
