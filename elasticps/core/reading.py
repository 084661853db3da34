"""Who reads which samples: the part of every ledger that the data policy has a word in."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Self

import msgspec

from elasticps.core.commands import LARGEST, Hold, Register, Vote
from elasticps.core.ids import Generation, Round, WorkerId
from elasticps.core.lending import (
    BUILT_IN,
    DYNAMIC,
    Lender,
    Lending,
    Loans,
    Ranges,
    settled,
)
from elasticps.core.ranges import DataSpec, Range, Supply, within

MAX_AHEAD = 32
"""Rounds that a worker may ask to know its samples of beforehand."""
MAX_LOCAL = 1024
"""Pieces that a worker may say lie on its node."""
NOT_LENT = "only samples that were lent can be kept"
NOT_ALL_READ = "every worker must take its samples from run.data, or none"


class Reading(msgspec.Struct, kw_only=True, dict=True):
    """``leases`` are lent; ``kept`` were lent for an earlier turn, and are yet to be read.

    ``data_policy`` names who shares samples out, ``policy`` the built-in one that the script asked
    for instead; ``owned`` is what it is told of its last answer, ``speeds`` and ``holds`` what
    workers have said. ``ahead``: of how many rounds to come they like to know their samples.
    ``readers`` take what they are lent. ``begun`` is the round that the job began with, ``resumed``
    what a checkpoint's job read; ``drawn_from`` the supply before the round under way was lent,
    with what was kept from the one before.
    ``failed`` is why the job cannot go on: then everybody is refused.
    """

    round: Round = Round(0)
    generation: Generation = Generation(0)
    members: list[WorkerId] = []
    data: DataSpec | None = None
    supply: Supply = Supply()
    leases: dict[WorkerId, tuple[Range, ...]] = {}
    kept: dict[WorkerId, tuple[Range, ...]] = {}
    data_policy: str = DYNAMIC
    policy: str = ""
    owned: dict[WorkerId, tuple[Range, ...]] = {}
    speeds: dict[WorkerId, float] = {}
    holds: dict[WorkerId, Hold] = {}
    ahead: int = 0
    readers: list[WorkerId] = []
    begun: Round = Round(0)
    resumed: DataSpec | None = None
    drawn_from: Supply = Supply()
    failed: str = ""

    def ruled_by(self, lender: Lender) -> Self:
        """This ledger, with the one that ``data_policy`` names: code is no part of the state."""
        self.__dict__["lender"] = lender
        return self

    # -- what is lent ---------------------------------------------------------------------------

    def _lent(self, worker: WorkerId) -> Ranges:
        """All that a worker has to read, what it kept first."""
        return self.kept.get(worker, ()) + self.leases.get(worker, ())

    def _taken_back(self, worker: WorkerId) -> Ranges:
        """What a worker was lent: it has it no more."""
        lent = self._lent(worker)
        self.kept.pop(worker, None)
        self.leases.pop(worker, None)
        return lent

    def _keeps_what_it_has(self, vote: Vote) -> bool:
        return all(within(part, self._lent(vote.worker)) for part in vote.keeps)

    @property
    def _exhausted(self) -> bool:
        """None lent and none left: where a worker died, none may be lent while some are left."""
        lent = any(self.leases.values()) or any(self.kept.values())
        return not lent and self._is_all_lent

    @property
    def _is_all_lent(self) -> bool:
        """Will nobody be lent anything more, unless a worker dies?"""
        return self.data is not None and self.supply.spent(self.data)

    # -- who reads ------------------------------------------------------------------------------

    def _enrol(self, command: Register) -> str:
        """Why a member cannot read this; empty where it can: it is a reader from now on."""
        worker, data = command.worker, command.data
        if min(data.size, data.batch_size, data.epochs) < 1 or data.size * data.epochs >= LARGEST:
            return f"there is nothing to read in {data}"
        if command.policy and command.policy not in BUILT_IN:
            return f"{command.policy} is no built-in data policy"
        if self.data is None:
            reason = self._objection(data)
            if reason:
                return reason
            self.data, self.policy = data, command.policy
            # Who has begun a step without samples must hear that there are some.
            self.generation = Generation(self.generation + 1)
            self._lend()
        elif self.data != data:
            return f"the job reads {self.data}, this worker {data}"
        elif self.policy != command.policy:
            asked = command.policy or self.data_policy
            return f"the job's data policy is {self.ruling}, this worker asks for {asked}"
        self.ahead = max(self.ahead, min(command.ahead, MAX_AHEAD))
        if worker not in self.readers:
            self.readers.append(worker)
        return ""

    def _objection(self, data: DataSpec) -> str:
        """Why the job cannot begin to read ``data`` now; empty when it can."""
        if self.round > self.begun or self._stepped:
            return "run.data must come before the first optimizer step"
        before = self.resumed
        if before is not None and (before.size, before.seed) != (data.size, data.seed):
            return (
                f"the checkpoint's job read {before}, this one {data}: their number and the seed "
                "must be the same; to train its weights on other data, `elasticps checkpoint "
                "export` them, `import` that file and --resume what it makes"
            )
        return ""

    def _is_no_reader(self, worker: WorkerId) -> bool:
        """Does this member not take the samples that it is lent?"""
        return self.data is not None and worker not in self.readers

    @property
    @abstractmethod
    def _stepped(self) -> bool:
        """Has a worker taken a step already?"""

    @abstractmethod
    def _lend(self) -> None:
        """Lend samples to those who are to have some."""

    # -- what workers say -----------------------------------------------------------------------

    def _note_speed(self, vote: Vote) -> None:
        if vote.speed > 0 and math.isfinite(vote.speed):
            self.speeds = {**self.speeds, vote.worker: vote.speed}

    def _note_local(self, hold: Hold) -> str:
        """Why this cannot be noted; empty where it is, or is older than what is known."""
        parts, known = hold.parts, self.holds.get(hold.worker)
        if len(parts) > MAX_LOCAL:
            return f"{len(parts)} pieces lie on this worker's node, {MAX_LOCAL} at most may"
        before = (0, *(part.stop for part in parts))
        if any(
            not stop <= part.start < part.stop for stop, part in zip(before, parts, strict=False)
        ):
            return "what lies on a node is said in order, and nothing twice"
        if known is None or known.number < hold.number:
            self.holds = {**self.holds, hold.worker: hold}
        return ""

    def _forget_readers(self, gone: Sequence[WorkerId]) -> None:
        self.speeds = {key: item for key, item in self.speeds.items() if key not in gone}
        self.holds = {key: item for key, item in self.holds.items() if key not in gone}

    # -- asking the policy ----------------------------------------------------------------------

    @property
    def ruling(self) -> str:
        """The data policy that shares the samples out."""
        return self.policy or self.data_policy

    @property
    def _lender(self) -> Lender:
        if self.policy:
            return BUILT_IN[self.policy]
        lender: Lender | None = self.__dict__.get("lender", BUILT_IN.get(self.data_policy))
        assert lender is not None, f"nobody brought the data policy {self.data_policy}"
        return lender

    def _question(
        self,
        borrowers: Sequence[WorkerId],
        wanted: int,
        supply: Supply,
        owned: dict[WorkerId, Ranges],
    ) -> Lending | None:
        """None where there is nothing to lend."""
        assert self.data is not None
        unread = supply.unread(self.data)
        if self.failed or not unread or not wanted:
            return None
        return Lending(
            size=self.data.size,
            members=tuple(self.members),
            borrowers=tuple(borrowers),
            wanted=wanted,
            unread=unread,
            owned=dict(owned),
            speeds=self.speeds,
            local={worker: hold.parts for worker, hold in self.holds.items()},
        )

    @staticmethod
    def _answer(lender: Lender, asked: Lending, supply: Supply) -> tuple[Loans, Supply]:
        """The policy's loans, and the supply after them. Raises what a plugin may: anything."""
        loans = lender.lend(asked)
        rest = settled(asked, loans, supply)
        lent = {worker: tuple(loans.lent.get(worker, ())) for worker in asked.borrowers}
        owned = {worker: tuple(parts) for worker, parts in loans.owned.items()}
        return Loans(lent=lent, owned=owned), rest

    def _borrow(self, borrowers: Sequence[WorkerId], wanted: int) -> None:
        """Have the policy lend to ``borrowers``, who hold nothing, ``wanted`` samples in all."""
        self.leases.update(self._drawn(borrowers, wanted))

    def _drawn(self, borrowers: Sequence[WorkerId], wanted: int) -> Mapping[WorkerId, Ranges]:
        """What the policy gives ``borrowers`` of the supply, ``wanted`` samples in all."""
        asked = self._question(borrowers, wanted, self.supply, self.owned)
        if asked is None:
            return {}
        lender = self._lender
        try:
            loans, supply = self._answer(lender, asked, self.supply)
        except (Exception, SystemExit) as error:  # a plugin may raise anything; its job alone ends
            self._fail(f"{type(error).__name__}: {error}")
            return {}
        held = any((*self.leases.values(), *self.kept.values()))
        if not held and not any(loans.lent.values()):
            self._fail("it lends nothing to anybody, though samples are left")
            return {}
        self.supply, self.owned = supply, dict(loans.owned)
        return loans.lent

    def _foreseen(self, borrowers: Sequence[WorkerId], wanted: int) -> dict[WorkerId, list[Ranges]]:
        """What ``borrowers`` are lent in the next rounds, where nothing changes until then.

        A hint and no loan: a policy that fails here fails again, and is told, when it counts.
        """
        foreseen: dict[WorkerId, list[Ranges]] = {worker: [] for worker in borrowers}
        supply, owned, lender = self.supply, self.owned, self._lender
        for _ in range(self.ahead):
            asked = self._question(borrowers, wanted, supply, owned)
            if asked is None:
                break
            try:
                loans, supply = self._answer(lender, asked, supply)
            except (Exception, SystemExit):  # see above
                break
            owned = dict(loans.owned)
            for worker in borrowers:
                foreseen[worker].append(loans.lent[worker])
        return foreseen

    def _fail(self, reason: str) -> None:
        """Who attends to a generation hears of the new one, and is refused when it asks on."""
        self.failed = f"data policy {self.ruling}: {reason}"
        self.generation = Generation(self.generation + 1)
