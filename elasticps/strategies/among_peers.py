"""What the strategies share whose workers exchange among themselves, round by round.

A round counts when all of its members have agreed on it at the ledger: nobody applies what it has
exchanged before that, so that a death in the middle leaves all who live where they were. Who joins
takes everything from rank 0, the member that has been there longest.
"""

from __future__ import annotations

from abc import abstractmethod

import torch

from elasticps.api.codec_choice import NONE
from elasticps.api.strategy import ServedOptimizer, Strategy, Worker
from elasticps.errors import MembershipChanged, PeerUnavailable, UsageError
from elasticps.strategies.member_state import packed, unpack

STATE = "state"


class AmongPeers(Strategy):
    """``publish_every``: after so many rounds, and after the last one, the shards get the values.

    They are what checkpoints, and a job all of whose workers have died, go on from. 0: at the end.
    """

    uses_peers = True

    def __init__(self, publish_every: int = 100) -> None:
        if not isinstance(publish_every, int) or publish_every < 0:
            raise UsageError(
                f"publish_every of {publish_every!r}", field="publish_every", limit="0 and more"
            )
        self._publish_every = publish_every
        self._members: tuple[int, ...] = ()

    def served_optimizer(self, chosen: ServedOptimizer) -> ServedOptimizer:
        """The shards take the difference to what the workers have: the optimizer runs in those."""
        return ServedOptimizer(name="sgd", options={"lr": 1.0})

    def begin(self, worker: Worker) -> None:
        """Become what rank 0 is; rank 0 itself has the shards' values."""
        if worker.consistency != "sync" or worker.backup_workers:
            raise UsageError(
                "workers that exchange among themselves do so in whole rounds",
                field="consistency",
                limit="sync consistency without backup workers",
            )
        if worker.codec != NONE:  # what is published are values: coded ones would be other values
            raise UsageError(
                "workers that exchange among themselves push values, not gradients",
                field="codec",
                limit=NONE,
            )
        while not self._has_met(worker, takes_state=True):
            worker.regroup()

    def step(self, worker: Worker) -> None:
        self.prepare(worker)
        self._round(worker)

    def abstain(self, worker: Worker) -> None:
        self._round(worker)

    def membership_changed(self, worker: Worker) -> None:
        while not self._has_met(worker, takes_state=False):
            worker.regroup()

    # -- what each of them adds -----------------------------------------------------------------

    def prepare(self, worker: Worker) -> None:
        """Do once what a step does before the exchange, however often that is begun anew."""

    @abstractmethod
    def attempt(self, worker: Worker, *, publishes: bool) -> bool:
        """Exchange, agree, apply. False when the members did not agree: nothing is applied.

        With ``publishes`` the shards are to have the new values, by ``Worker.agree``'s updates.
        """

    # -- a round --------------------------------------------------------------------------------

    def _round(self, worker: Worker) -> None:
        while not self._is_done(worker):
            continue

    def _is_done(self, worker: Worker) -> bool:
        try:
            return self.attempt(worker, publishes=self._publishes(worker))
        except (PeerUnavailable, MembershipChanged):
            worker.regroup()
            return False

    def _publishes(self, worker: Worker) -> bool:
        """All members of a round come to the same answer."""
        every = self._publish_every
        is_due = every > 0 and (worker.round + 1) % every == 0
        is_left_by_all = worker.leaving and worker.world == 1
        return is_due or is_left_by_all or worker.ends_data

    # -- members --------------------------------------------------------------------------------

    def _has_met(self, worker: Worker, *, takes_state: bool) -> bool:
        """Know the members; a new one takes what rank 0 has, and has it ready for the next.

        False when they have changed meanwhile.
        """
        try:
            members = worker.peers.members
            if takes_state and worker.rank:
                unpack(worker, worker.peers.fetch(0, STATE))
            if not set(members) <= set(self._members):
                worker.peers.put(STATE, packed(worker))
        except (PeerUnavailable, MembershipChanged):
            return False
        self._members = members
        return True


def difference(worker: Worker) -> dict[str, torch.Tensor]:
    """What the shards must subtract to have this worker's parameters; they are read for it."""
    worker.pull()
    served = worker.served
    return {name: served[name] - item.detach() for name, item in worker.parameters.items()}
