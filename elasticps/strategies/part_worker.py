"""A worker's membership as the strategy of some of its parameters sees it."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum
from typing import TYPE_CHECKING

from elasticps.api.strategy import Fetching, Peers, Pending, Worker
from elasticps.errors import UsageError
from elasticps.strategies.part_optimizer import PartOptimizer

if TYPE_CHECKING:
    import torch

    from elasticps.api.pipeline import Pipeline
    from elasticps.api.strategy import Tensors, Weight


class Act(Enum):
    EXCHANGE = "exchange"
    """Push, and read: again where the members change meanwhile."""
    AGREE = "agree"
    """Vote, once; push if there is something to push."""
    ABSTAIN = "abstain"
    """Push nothing, and read."""
    REGROUP = "regroup"
    """Begin the round anew with the members who are left."""
    AWAIT_CHANGE = "await_change"
    """The same, once somebody is gone."""


@dataclass(slots=True, kw_only=True, eq=False)
class Request:
    """What a part asks of the round. ``answer`` is what the call returns, None until it may.

    ``weights`` are those of its parameters. ``reads`` are to be read into ``served``, and with
    ``lands`` into the parameters as well.
    """

    act: Act
    updates: Tensors = field(default_factory=dict)
    weights: Mapping[str, float] = field(default_factory=dict)
    reads: Sequence[str] = ()
    lands: bool = False
    answer: bool | None = None

    @property
    def is_round(self) -> bool:
        return self.act not in (Act.REGROUP, Act.AWAIT_CHANGE)


class PartWorker:
    """An ``api.strategy.Worker`` with the parameters ``names`` of ``whole``'s.

    A part's round has ``periods`` of the job's, of ``span`` steps each. ``stand`` is called where
    the part waits for ``request`` to be answered. ``key`` is what its tensors for peers are named
    with; None for a part that has no peers.
    """

    def __init__(
        self,
        whole: Worker,
        names: Sequence[str],
        *,
        span: int,
        periods: int,
        stand: Callable[[], None],
        key: str | None,
    ) -> None:
        self.names = tuple(names)
        self.periods = periods
        self.weight = 0.0
        self.request: Request | None = None
        self.may_ask = False
        """May it ask for its round? Once in a step."""
        self._whole = whole
        self._span = span
        self._stand = stand
        self._key = key
        self._weight_before = 0.0
        self._optimizer = PartOptimizer(whole.local_optimizer, list(self.parameters.values()))

    # -- what a strategy reads ------------------------------------------------------------------

    @property
    def parameters(self) -> Tensors:
        return {name: self._whole.parameters[name] for name in self.names}

    @property
    def served(self) -> Tensors:
        served = self._whole.served
        return {name: served[name] for name in self.names}

    @property
    def local_optimizer(self) -> torch.optim.Optimizer:
        self._optimizer.follow()
        return self._optimizer

    @property
    def rank(self) -> int:
        return self._whole.rank

    @property
    def world(self) -> int:
        return self._whole.world

    @property
    def pushers(self) -> int:
        return self._whole.pushers

    @property
    def generation(self) -> int:
        return self._whole.generation

    @property
    def round(self) -> int:
        return self._whole.round // self.periods

    @property
    def steps_left(self) -> int:
        """Until the end of the job's round that ends this part's, the same one in all workers."""
        left = self._whole.steps_left
        return left if self._whole.ends_data else left + self._span * self._rounds_left

    @property
    def is_due(self) -> bool:
        """Does the job's round under way end this part's?"""
        return self._whole.ends_data or self._rounds_left == 0

    @property
    def _rounds_left(self) -> int:
        return self.periods - 1 - self._whole.round % self.periods

    @property
    def ends_data(self) -> bool:
        return self._whole.ends_data

    @property
    def leaving(self) -> bool:
        return self._whole.leaving

    @property
    def peers(self) -> Peers:
        if self._key is None:
            raise UsageError("this strategy does not say uses_peers", field="uses_peers")
        return _PartPeers(self._whole.peers, self._key)

    @property
    def pipeline(self) -> Pipeline:
        raise UsageError("a part of the parameters is no pipeline", field="strategy")

    @property
    def consistency(self) -> str:
        return self._whole.consistency

    @property
    def backup_workers(self) -> int:
        return self._whole.backup_workers

    @property
    def codec(self) -> str:
        return self._whole.codec

    # -- what a strategy does -------------------------------------------------------------------

    def exchange(self, updates: Tensors | None = None, *, weight: Weight = None) -> bool:
        updates = self._gradients if updates is None else updates
        return self._await(self._asked(Act.EXCHANGE, updates, weight, self.names, lands=True))

    def start_exchange(
        self, updates: Tensors, *, weight: Weight = None, pull: Collection[str] | None = None
    ) -> Pending:
        reads = tuple(updates) if pull is None else self._own(pull)
        return _Ticket(self._asked(Act.EXCHANGE, updates, weight, reads), self._await)

    def push(self, updates: Tensors | None = None) -> None:
        updates = self._gradients if updates is None else updates
        self._own(updates)
        self._whole.push(updates)

    def pull(self, names: Collection[str] | None = None) -> None:
        self._whole.pull(self.names if names is None else self._own(names))

    def refresh(self, names: Collection[str]) -> None:
        self._whole.refresh(self._own(names))

    def agree(self, updates: Tensors | None = None, *, weight: Weight = None) -> bool:
        if self.consistency != "sync" or self.backup_workers:
            raise UsageError(
                "workers agree in whole rounds",
                field="consistency",
                limit="sync consistency without backup workers",
            )
        return self._await(self._asked(Act.AGREE, updates or {}, weight))

    def regroup(self) -> None:
        self._await(self._open(Request(act=Act.REGROUP)))

    def abstain(self, pull: Collection[str] | None = None) -> None:
        reads = self.names if pull is None else self._own(pull)
        self._await(self._asked(Act.ABSTAIN, {}, None, reads, lands=True))

    def await_joiner(self, why: str) -> None:
        raise UsageError(
            "the other parts can go on: where strategies go by name none waits for a worker",
            field="strategy",
        )

    def prefer_here(self, names: Collection[str]) -> None:
        """Not told: the last call would count, and it would be one part's."""

    def log(self, **numbers: float) -> None:
        self._whole.log(**numbers)

    def await_change(self) -> None:
        self._await(self._open(Request(act=Act.AWAIT_CHANGE)))

    @property
    def _gradients(self) -> Tensors:
        grads = {name: item.grad for name, item in self.parameters.items()}
        return {name: item for name, item in grads.items() if item is not None}

    def _asked(
        self,
        act: Act,
        updates: Tensors,
        weight: Weight,
        reads: Sequence[str] = (),
        *,
        lands: bool = False,
    ) -> Request:
        """Ask for the round, once it is clear that this is the moment for it."""
        self._own(updates)
        if not self.may_ask:
            raise UsageError(
                "a second round in one step, or one outside of a step",
                field="strategy",
                limit="one round a step where strategies go by name",
            )
        if self.consistency == "sync" and self.steps_left > 0 and not self.leaving:
            raise UsageError(
                f"a round is ended {self.steps_left} steps before its samples are used up",
                field="strategy",
                limit="steps_left of 0: where strategies go by name all workers end a part's round"
                " in the same step",
            )
        own = weight if isinstance(weight, Mapping) else {}
        usual = weight if isinstance(weight, int | float) else self.weight or 1.0
        weights = {name: own.get(name, usual) for name in self.names}
        request = self._open(
            Request(act=act, updates=updates, weights=weights, reads=reads, lands=lands)
        )
        self._weight_before, self.weight = self.weight, 0.0
        return request

    def _open(self, request: Request) -> Request:
        if self.request is not None and self.request.answer is None:
            raise UsageError("a round is under way: wait for its ticket first", field="strategy")
        self.request = request
        return request

    def _await(self, request: Request) -> bool:
        while request.answer is None:
            self._stand()
        return request.answer

    def _own(self, names: Collection[str]) -> tuple[str, ...]:
        for name in names:
            if name not in self.names:
                raise UsageError(f"no parameter of this part is named {name!r}", field="updates")
        return tuple(names)

    # -- what the combination does --------------------------------------------------------------

    @property
    def open_request(self) -> Request | None:
        request = self.request
        return request if request is not None and request.answer is None else None

    def stepped(self, weight: float) -> None:
        """A step on so many samples is about to be taken."""
        self.weight += weight
        self.may_ask = True

    def settle(self, answer: bool) -> None:
        """Answer the open request; after a round that is not whole it may be asked again."""
        request = self.open_request
        assert request is not None
        request.answer = answer
        if not request.is_round:
            return
        self.may_ask = not answer and request.act is Act.AGREE
        if self.may_ask:
            self.weight = self._weight_before


class _Ticket:
    """A ``Pending`` for the job's round, which is made when the other parts have come to it."""

    def __init__(self, request: Request, wait: Callable[[Request], bool]) -> None:
        self._request = request
        self._wait = wait

    @property
    def done(self) -> bool:
        return self._request.answer is not None

    def wait(self) -> bool:
        return self._wait(self._request)


class _PartPeers:
    """The other workers' tensors of the same part."""

    def __init__(self, peers: Peers, key: str) -> None:
        self._peers = peers
        self._key = key

    @property
    def members(self) -> tuple[int, ...]:
        return self._peers.members

    def put(self, key: str, tensor: torch.Tensor) -> None:
        self._peers.put(f"{self._key}/{key}", tensor)

    def fetch(self, rank: int, key: str) -> torch.Tensor:
        return self._peers.fetch(rank, f"{self._key}/{key}")

    def fetch_all(self, wanted: Mapping[int, str]) -> dict[int, torch.Tensor]:
        return self._peers.fetch_all({rank: f"{self._key}/{key}" for rank, key in wanted.items()})

    def start_fetch(self, rank: int, key: str) -> Fetching:
        return self._peers.start_fetch(rank, f"{self._key}/{key}")

    def sum(self, tensor: torch.Tensor) -> None:
        self._peers.sum(tensor)
