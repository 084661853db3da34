"""A simulated checkpoint while it is made, as the main worker sees it: ``checkpoint_making.py``."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from elasticps.core.commands import Answer, Cut, Inspect, Inspected, Turn
from elasticps.core.ids import BlockId, Round
from elasticps.sim.messages import Kind, PullBody, SaveBody, Saved, Status

if TYPE_CHECKING:
    from elasticps.sim.worker import Worker


class Making:
    """One worker's, one at a time; it goes on training while the servers write."""

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._round = Round(0)
        self._proof = PullBody(None, {})
        self._is_under_way = False

    def is_due(self, turn: Turn) -> bool:
        """Is the round that this worker has just read one to be saved?"""
        every, round_ = self._worker.job.saves, self._worker.round
        if not every or turn.rank or self._is_under_way:
            return False
        return round_ > self._round and round_ % every == 0

    def begin(self, go_on: Callable[[], None]) -> None:
        """Ask which samples have been read, tell all who write the blocks, and ``go_on``."""
        worker = self._worker
        self._round, self._proof, self._is_under_way = worker.round, worker.proof, True

        def known(answer: Answer) -> None:
            assert isinstance(answer, Inspected)
            if self._is_exact and answer.cut.round != self._round:
                self._is_under_way = False
                go_on()
            else:
                self.tell(answer.cut, go_on)

        worker.say(Inspect(worker.id), known)

    def tell(self, cut: Cut, go_on: Callable[[], None]) -> None:
        def told(answers: dict[BlockId, Saved | None]) -> None:
            if None in answers.values():
                self._is_under_way = False
            else:
                self._ask(True, lambda saved: self._written(saved, cut))
            go_on()

        self._ask(False, told)

    @property
    def _is_exact(self) -> bool:
        job = self._worker.job
        return job.in_rounds and not job.backup_workers

    def _ask(self, written: bool, then: Callable[[dict[BlockId, Saved | None]], None]) -> None:
        """Ask every block; None: it has gone on."""
        worker, answers = self._worker, dict[BlockId, Saved | None]()
        draft = f"{worker.id}:{self._round}"

        def asked(block: BlockId) -> None:
            def done(status: Status, saved: Saved | None) -> None:
                empty = Saved(self._round, ())
                answers[block] = (saved or empty) if status is Status.OK else None
                if len(answers) == worker.job.blocks:
                    then(answers)

            body = SaveBody(draft, worker.proof_for(block, self._proof), self._is_exact, written)
            worker.call(Kind.SAVE, block, body, done)

        for block in worker.job.block_ids:
            asked(block)

    def _written(self, answers: dict[BlockId, Saved | None], cut: Cut) -> None:
        self._is_under_way = False
        saved = {block: each for block, each in answers.items() if each is not None}
        if len(saved) == len(answers):
            self._worker.check.saved(self._worker.job, saved, cut, exact=self._is_exact)
