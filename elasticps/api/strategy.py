"""The contract of a communication strategy (entry-point group ``elasticps.strategies``).

A strategy runs on the script's own thread, inside ``optimizer.step()``. What it calls on its
``Worker`` blocks until that is done; what must overlap with computing goes by tickets, ``Pending``.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, ClassVar, Protocol

if TYPE_CHECKING:
    import torch

    from elasticps.api.pipeline import Pipeline

    Tensors = Mapping[str, torch.Tensor]
    """Tensors by the names of the parameters that they belong to, each in its shape and dtype."""

    Weight = float | Mapping[str, float] | None
    """How much an update counts in the mean: all alike, or by name. None: ``Worker.weight``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServedOptimizer:
    """The optimizer that the shard servers run: a plugin's name, and its class's arguments."""

    name: str
    options: Mapping[str, Any] = field(default_factory=dict)


class Pending(Protocol):
    """What goes on in the background while the script computes."""

    @property
    def done(self) -> bool:
        """Would ``wait`` return, or raise, at once?"""

    def wait(self) -> bool:
        """Wait for the end, and take in what it brought: a new round, members, samples.

        False when the round was made by others (backup workers): this worker's update does not
        count, and its samples are lent again. Raises what went wrong, JobFailed for one.
        """


class Fetching(Protocol):
    """A fetch under way."""

    def wait(self) -> torch.Tensor:
        """What was fetched. Raises MembershipChanged, PeerUnavailable."""

    def cancel(self) -> None:
        """It is not wanted any more. Idempotent."""


class Peers(Protocol):
    """The other workers of the job. For a strategy that says ``uses_peers``, in sync mode alone.

    Every call is of the round under way and of the worker's ``generation``. It raises
    MembershipChanged when that is over, PeerUnavailable when a peer is gone, both at once: then
    ``Worker.regroup``, and begin the round anew with who is left.
    """

    @property
    def members(self) -> tuple[int, ...]:
        """The members' ids in rank order. An id is one life of a worker: it does not come again."""

    def put(self, key: str, tensor: torch.Tensor) -> None:
        """Hold ``tensor`` ready for the peers until the round is over.

        It is not copied: its values must stay as they are meanwhile.
        """

    def fetch(self, rank: int, key: str) -> torch.Tensor:
        """What the peer has put in this round, once it has. A tensor of this worker's own."""

    def fetch_all(self, wanted: Mapping[int, str]) -> dict[int, torch.Tensor]:
        """The same of several peers at a time, by rank."""

    def start_fetch(self, rank: int, key: str) -> Fetching:
        """The same in the background."""

    def sum(self, tensor: torch.Tensor) -> None:
        """Replace ``tensor`` by the sum of all members' in its place, the same in each to the bit.

        It must be contiguous. When this raises, leave it to the garbage collector: it may be
        written to yet.
        """


class Worker(Protocol):
    """One worker's membership as its strategy sees it.

    ``rank``, ``world``, ``generation`` and ``round`` change only in a call of this worker's or in a
    ticket's ``wait``. Names are those of the model's parameters.
    """

    @property
    def parameters(self) -> Tensors:
        """What the script trains. Write in place, under ``torch.no_grad``."""

    @property
    def served(self) -> Tensors:
        """What the shards held when they were read last: tensors apart from ``parameters``.

        They cost a copy of the model from the first time that they are asked for.
        """

    @property
    def local_optimizer(self) -> torch.optim.Optimizer:
        """The script's choice over ``parameters``, here; it follows the script's param groups.

        Its state is this worker's alone: no checkpoint has it, and who joins begins without.
        """

    @property
    def rank(self) -> int:
        """This worker's place among the members, from 0."""

    @property
    def world(self) -> int:
        """How many members the round to come has."""

    @property
    def pushers(self) -> int:
        """How many of them have samples to contribute to it."""

    @property
    def generation(self) -> int:
        """A number for the set of members; it grows when that changes."""

    @property
    def round(self) -> int:
        """How many rounds the job has finished, as far as this worker knows."""

    @property
    def weight(self) -> float:
        """Samples behind the steps since the last exchange; 1 a step without run.data."""

    @property
    def steps_left(self) -> int:
        """Steps that the samples lent to this worker allow after this one.

        At 0 the round must be ended: ``run.data`` has nothing more to give before that. Samples
        that are unread when a round begins are this worker's in the next one as well.
        """

    @property
    def ends_data(self) -> bool:
        """Are there no samples left to lend after these, unless a worker dies?"""

    @property
    def leaving(self) -> bool:
        """Has this worker been asked to leave? Its next exchange is its last."""

    @property
    def peers(self) -> Peers:
        """The other workers. Raises UsageError where the strategy does not say ``uses_peers``."""

    @property
    def pipeline(self) -> Pipeline:
        """The model as layers. Raises UsageError where the script gave none by run.pipeline.

        ``parameters`` has all of them, held or not; no call reads into one that is not.
        """

    @property
    def consistency(self) -> str:
        """``sync``, ``bounded`` or ``async``."""

    @property
    def backup_workers(self) -> int:
        """How many of the slowest a round does not wait for."""

    @property
    def codec(self) -> str:
        """What pushes are coded with, as the user spelled it; ``none``: they go as they are."""

    def exchange(self, updates: Tensors | None = None, *, weight: Weight = None) -> bool:
        """One round, from the push to the pull: on return ``parameters`` are what the shards hold.

        ``updates`` are what the served optimizer gets as gradients, the mean by ``weight`` over
        the workers; None stands for ``.grad``. A parameter without one is not stepped. When the
        set of members changes meanwhile all push again. Returns what ``Pending.wait`` does.
        """

    def start_exchange(
        self,
        updates: Tensors,
        *,
        weight: Weight = None,
        pull: Collection[str] | None = None,
    ) -> Pending:
        """The same in the background: what it reads is for ``served``, ``parameters`` stay.

        ``pull`` names what is read, None what has an update. ``updates`` must stay as they are
        until the ticket is done; ``served`` changes in its ``wait``. One at a time.
        """

    def push(self, updates: Tensors | None = None) -> None:
        """Push to parameters that are ``Strategy.applied_at_once``, in no round, in sync mode.

        On return it is applied at every counted replica, by itself and once, whatever becomes of
        the round under way. None stands for ``.grad`` of all of them.
        """

    def pull(self, names: Collection[str] | None = None) -> None:
        """Read into ``served`` what the shards hold: in sync mode as of the last round."""

    def refresh(self, names: Collection[str]) -> None:
        """Read these ``parameters`` from the shards, in place: what ``pull`` does for served."""

    def agree(self, updates: Tensors | None = None, *, weight: Weight = None) -> bool:
        """One round without reading: on True all members have said so, and its samples count.

        On False the members changed first: nothing counts, and ``generation`` is another. All must
        give ``updates`` or none: they go to the shards as in ``exchange``, in the same round.
        """

    def regroup(self) -> None:
        """An exchange among peers has failed: learn who is left.

        Where nobody is gone after a moment the round begins anew with the same members.
        """

    def abstain(self, pull: Collection[str] | None = None) -> None:
        """Take part in a round without samples, and read ``parameters`` from the shards.

        ``pull`` names what is read, None all.
        """

    def await_joiner(self, why: str) -> None:
        """The members cannot do this round: wait until one more takes part in it, or one is gone.

        Who joins is let in at once, without samples. ``why`` is shown in ``elasticps status``. The
        round is begun anew then: ``generation`` is another.
        """

    def prefer_here(self, names: Collection[str]) -> None:
        """Wish that the shards on this worker's node lead these parameters, and no others.

        For what this worker pushes and pulls, and others do not. The placement may do otherwise;
        the last call counts, until this worker is gone.
        """

    def log(self, **numbers: float) -> None:
        """Numbers to show in ``elasticps status``, beside the script's own from ``Run.log``."""

    def await_change(self) -> None:
        """Wait until the members are others than ``generation``'s, and take in who they are now.

        For who has lost a peer in the middle of what the shards have no part in.
        """


class Strategy(ABC):
    """How workers exchange what they have learned. Made anew in each worker.

    The entry point names the class; its constructor's arguments are what a user may write behind
    the name: ``--strategy name:h=16``. What a method raises fails its worker, and names the plugin.
    """

    api_version: ClassVar[int] = 2
    uses_peers: bool = False
    """Does it exchange tensors among the workers? They listen for each other then."""
    uses_pipeline: ClassVar[bool] = False
    """Must the script give its model by ``run.pipeline``? Nothing of it need be held here then."""

    @property
    def steps_per_round(self) -> int:
        """For how many steps a worker is lent samples at most: those of a round, usually.

        With exchanges in the background: those of a round, and the steps that go on meanwhile.
        """
        return 1

    def served_optimizer(self, chosen: ServedOptimizer) -> ServedOptimizer:
        """What the shard servers run, given the script's choice: that, unless told otherwise.

        Where it is another, the script's param groups and schedules are ``local_optimizer``'s
        alone. All workers must give the same.
        """
        return chosen

    def served_optimizers(
        self, chosen: ServedOptimizer, names: Sequence[str]
    ) -> Mapping[str, ServedOptimizer]:
        """The same for each of the parameters ``names``: all go by ``served_optimizer``'s.

        Where it is ``chosen`` for some of them, the script's schedules are followed for those.
        """
        return dict.fromkeys(names, self.served_optimizer(chosen))

    def applied_at_once(self, names: Sequence[str]) -> Collection[str]:
        """For which of the parameters ``names`` pushes are applied when they come, in sync mode.

        Rounds have no part of them: they are pushed by ``Worker.push`` and read by ``pull``. A
        worker that dies has its samples lent again, and may have pushed for them: what is promised
        is that no push is lost or applied twice. Such a job has neither checkpoints nor backup
        workers.
        """
        return ()

    @property
    def is_published(self) -> bool:
        """Have the shards all that counts of the last round? A checkpoint waits until they have.

        Where nothing was pushed in the round they have not, whatever this says.
        """
        return True

    def begin(self, worker: Worker) -> None:  # noqa: B027 - most have nothing to prepare
        """``worker`` has become a member and its parameters are the job's.

        Raises UsageError for a job that this strategy cannot serve.
        """

    def forward_backward(
        self, worker: Worker, inputs: torch.Tensor, targets: torch.Tensor
    ) -> torch.Tensor:
        """A pipeline's loss for a batch, with gradients in ``.grad``: computed here by default."""
        return worker.pipeline.compute(inputs, targets)

    @abstractmethod
    def step(self, worker: Worker) -> None:
        """One optimizer step: gradients are in ``.grad``, as backward left them.

        On return the parameters are what the next forward pass uses.
        """

    def abstain(self, worker: Worker) -> None:
        """A round in which this worker has no samples, while others have."""
        worker.abstain()

    def membership_changed(self, worker: Worker) -> None:  # noqa: B027
        """The set of members is another since the step before."""

    def end(self, worker: Worker) -> None:  # noqa: B027
        """No more steps come: the data are all read, or the worker is about to leave.

        On return the parameters are the model to evaluate. It must not wait for other workers, and
        no exchange is possible any more.
        """
