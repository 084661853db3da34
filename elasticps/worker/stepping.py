"""A member's steps: what the run, the optimizer and the data loader have its strategy do."""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future

import msgspec
import torch

from elasticps.core.blocks import Hyperparameters
from elasticps.core.commands import Reduced
from elasticps.core.ids import Round
from elasticps.core.lending import LEASED, LOCAL
from elasticps.core.ranges import DataSpec, Range
from elasticps.errors import JobFailed, UsageError
from elasticps.worker.block_calls import States
from elasticps.worker.forward_overlap import Arrivals
from elasticps.worker.lease import Samples
from elasticps.worker.member import Member


class Stepping(Member):
    """A member whose strategy takes the steps of the script."""

    # -- what the run does ----------------------------------------------------------------------

    def begin(self) -> None:
        """This worker has become a member."""
        self._adopt_turn()
        assert self.turn is not None
        self._lease.add(self.turn)
        self._strategy.begin(self)

    def step(self, changed_options: Sequence[Hyperparameters], weight: float) -> None:
        """One optimizer step on ``weight`` samples."""
        if self.turn is None:
            raise JobFailed("this worker has left the job")
        before = self.generation
        self._leaving = self._is_retiring()
        self._exchange.hyper = self._of_the_servers(changed_options)
        if None not in self._follows and not self._is_in_rounds:
            self._clip()
        self.steps += 1
        self.weight += weight
        self._ended = False
        self._lease.stepped()
        self._strategy.step(self)
        self._tell_change(before)

    def begin_early(self, options: Sequence[Hyperparameters], weight: float) -> bool:
        """Number the pushes of the round before its step; False where this worker has none."""
        if self.turn is None or not self.turn.contributes:
            return False
        exchange = self._exchange
        exchange.hyper = self._of_the_servers(options)
        exchange.weight, exchange.weights = weight or 1.0, {}
        exchange.begin(None)
        self._began_early = True
        return True

    def push_early(self, name: str) -> None:
        """The gradient of a parameter is there, and stays as it is until the step."""
        self._loop.tell(self._exchange.push_early, *self._model.numbered({name: 1.0}))

    def share_no_memory(self, why: str) -> None:
        """All blocks go through sockets from now on."""
        self._exchange.shared.turn_off(why)

    def overlap_forward(self, model: torch.nn.Module) -> None:
        """From now on the values that a round ends with may come after its step."""
        here = self._model.by_index(self.parameters)

        def read(indices: Sequence[int]) -> Future[None]:
            return self._loop.start(self._exchange.read({index: here[index] for index in indices}))

        tensors = list(self.parameters.values())
        arrivals = Arrivals(tensors, read, self._loop.result_of)
        arrivals.guard(model)
        self.arrivals = arrivals

    def arrive(self) -> None:
        """Wait for values that are still to come."""
        if self.arrivals is not None:
            self.arrivals.wait()

    @property
    def clip_bound(self) -> float | None:
        return self._clipping.bound

    def _of_the_servers(self, options: Sequence[Hyperparameters]) -> list[Hyperparameters]:
        return [{} if index is None else options[index] for index in self._follows]

    def forward_backward(self, inputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """The loss and the gradients of a batch, as the strategy computes them."""
        if self.turn is None:
            raise JobFailed("this worker has left the job")
        before = self.generation
        loss = self._strategy.forward_backward(self, inputs, targets)
        self._tell_change(before)
        return loss

    def _tell_change(self, before: int) -> None:
        if self.turn is not None and self.generation != before:
            self._strategy.membership_changed(self)

    def end(self) -> None:
        """No more steps come. Idempotent."""
        if not self._ended:
            self._ended = True
            if self._ticket is not None:
                self._ticket.wait()
            self._strategy.end(self)

    def of_the_script(self, options: Sequence[Hyperparameters]) -> list[Hyperparameters]:
        """The servers' param groups' options as the script's groups have them."""
        found: list[Hyperparameters] = [{} for _ in self.local_optimizer.param_groups]
        for index, item in zip(self._follows, options, strict=True):
            if index is not None:
                found[index] = item
        return found

    # -- what the data loader and the optimizer do ----------------------------------------------

    def register(self, spec: DataSpec, policy: str, ahead: int) -> None:
        """Say what is read; the ledger lends for as many steps as the strategy's round has.

        ``policy``: what the script asks for, empty for the job's; ``ahead``: the rounds to foresee.
        """
        span = self._strategy.steps_per_round
        wider = msgspec.structs.replace(spec, batch_size=spec.batch_size * span)
        self._loop.call(self._exchange.register(wider, policy, ahead))
        self._model.refresh()
        self._lease.clear()
        by_speed = (policy or self._job.data_policy) in (LEASED, LOCAL)
        self._lease.read_data(spec.batch_size, by_speed=by_speed)
        self._adopt_turn()
        assert self.turn is not None
        self._lease.add(self.turn)

    def next_samples(self) -> Samples | None:
        """The samples of the next step; None when there are none in this turn, or any more."""
        samples = self._lease.take()
        if samples is None and self._ticket is not None:
            self._ticket.wait()
            samples = self._lease.take()
        return samples

    @property
    def samples_ahead(self) -> list[Samples]:
        """The batches of the steps after, as far as they can be foreseen."""
        return self._lease.ahead

    def hold(self, parts: Sequence[Range]) -> None:
        """Say which positions lie on this node."""
        self._loop.call(self._exchange.hold(parts))

    def tell_speed(self, speed: float) -> None:
        """Samples a second, told with the next vote."""
        self._exchange.speed = speed

    def reduce(self, numbers: Sequence[float], weight: float) -> Reduced:
        """The sums of what the members give between the same two rounds."""
        self._be_in_rounds()
        if self._ticket is not None:
            self._ticket.wait()
        return self._loop.call(self._exchange.reduce(numbers, weight))

    def sit_out(self) -> None:
        """A round without samples."""
        assert self.turn is not None
        if self.turn.samples:
            raise UsageError(
                "the strategy ended no round, and the samples that were lent for it are all read",
                field="strategy",
                hint="exchange at the latest when worker.steps_left is 0",
            )
        before = self.generation
        self._leaving = self._is_retiring()
        self._strategy.abstain(self)
        self._tell_change(before)

    def initialize(self, states: States) -> None:
        """Give the blocks their values and states, where the job has not begun to train."""
        self._be_alone()
        self._loop.call(self._exchange.initialize(states, Round(self.round)))
        self._model.refresh()

    def read_values(self) -> None:
        """Read the parameters from the shards."""
        self._be_alone()
        self._loop.call(self._exchange.read())
        self._model.refresh()
