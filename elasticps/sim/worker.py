"""A simulated worker: a script's loop over ``worker/exchange.py``'s steps, as a state machine."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from elasticps.core.affinity import Span, joined
from elasticps.core.audit import Tally
from elasticps.core.commands import (
    Admitted,
    Answer,
    Attend,
    Called,
    Command,
    Committed,
    Floor,
    Initialized,
    Join,
    Leave,
    Question,
    Ready,
    Refused,
    Regenerated,
    Register,
    Registered,
    Regroup,
    Through,
    Turn,
    Vote,
)
from elasticps.core.ids import LEDGER, BlockId, Generation, Round, Seq, WorkerId
from elasticps.core.replica import Commit
from elasticps.sim.calls import Call, Caller
from elasticps.sim.making import Making
from elasticps.sim.messages import Kind, PullBody, PushBody, Status, Value

if TYPE_CHECKING:
    from elasticps.core.ids import NodeId
    from elasticps.sim.world import World


class Worker(Caller):
    """One life of a worker. ``ended`` is told once: how it went."""

    def __init__(
        self,
        world: World,
        name: WorkerId,
        node: NodeId,
        ended: Callable[[str], None],
        prefer: Callable[[tuple[Span, ...]], None],
    ) -> None:
        super().__init__(world, f"worker {name}", node, name)
        self.turn: Turn | None = None
        self.commit: Commit | None = None
        self.retiring = False
        self.tally = Tally()
        self._world = world
        self.check = world.check
        self.job = world.job
        self._ended = ended
        self._prefer = prefer
        self._preferred: tuple[Span, ...] = ()
        self._pace = world.pace()
        self._floor: Floor = {}
        self._seq = Seq(0)
        self._leaving = False
        self._called: Called | None = None
        self._counted = False
        self._registered = False
        self._pushes: dict[BlockId, Call] = {}
        self._norms: dict[BlockId, float] = {}
        self._scale = 1.0
        self._stale = False
        self._generation = Generation(0)
        self._attending: Call | None = None
        self._making = Making(self)

    # -- joining --------------------------------------------------------------------------------

    def start(self) -> None:
        self.say(Join(self.id), self._admitted)

    def say(self, word: Command | Question, then: Callable[[Any], None]) -> Call:
        """Say something to the ledger; ``then`` gets its answer unless it refuses."""

        def done(_: Status, answer: Answer) -> None:
            if isinstance(answer, Refused):
                self._refused(answer)
            else:
                then(answer)

        return self.call(Kind.LEDGER, LEDGER, word, done)

    def _refused(self, answer: Refused) -> None:
        self.check.refused(self, answer.reason)
        self._end(f"refused: {answer.reason}")

    def _each(self, kind: Kind, body: Any, then: Callable[[dict[BlockId, Any]], None]) -> None:
        """Ask every block; ``then`` gets all answers."""
        answers: dict[BlockId, Any] = {}

        def asked(block: BlockId) -> None:
            def done(status: Status, answer: Any) -> None:
                if kind is not Kind.INIT and status is not Status.OK:
                    self.check.fail("refused", f"block {block} answered {status}")
                answers[block] = answer
                if len(answers) == self.job.blocks:
                    then(answers)

            calls.append(Call(kind, block, self.proof_for(block, body), done))

        calls: list[Call] = []
        for block in self.job.block_ids:
            asked(block)
        for in_rounds in (True, False):
            run = [call for call in calls if self.job.has_rounds(call.block) is in_rounds]
            self._ask_each(run, together=kind is Kind.PULL)

    def _ask_each(self, calls: list[Call], *, together: bool = True) -> None:
        if together and self.job.grouped:
            self.call_each(calls)
        else:
            for call in calls:
                self.begin(call)

    def proof_for(self, block: BlockId, body: Any) -> Any:
        """A block whose pushes are applied at once knows of no rounds."""
        at_once = self.job.in_rounds and not self.job.has_rounds(block)
        return PullBody(None, {}) if at_once and isinstance(body, PullBody) else body

    def _admitted(self, answer: Answer) -> None:
        if isinstance(answer, Through):
            self._end("succeeded")
            return
        assert isinstance(answer, Admitted)
        if answer.initialize:
            self._each(
                Kind.INIT, None, lambda _: _ignore(self.say(Initialized(self.id), self._admitted))
            )
            return
        self.turn, self.commit, self._floor = answer.turn, answer.commit, answer.floor
        self.check.joined(self)
        self._read()

    def _read(self) -> None:
        """Read every block, no older than what this worker was told."""
        self._each(Kind.PULL, self.proof, self._have_read)

    @property
    def proof(self) -> PullBody:
        return PullBody(self.commit if self.job.in_rounds else None, self._floor)

    def _have_read(self, values: dict[BlockId, Value]) -> None:
        self.check.pulled(self, values)
        if self._counted:
            self.tally = self.tally.plus(self._seq)
            self._counted = False
        if self.turn is None:
            self._end("left")
        else:
            self._go_on(self.turn)

    # -- the script -----------------------------------------------------------------------------

    def _go_on(self, turn: Turn) -> None:
        """What the loop of the script does next."""
        if self._making.is_due(turn):
            self._making.begin(lambda: self._go_on(turn))
            return
        self._prefer_some(turn)
        data = self.job.data
        if data is not None and not self._registered:
            self.say(Register(self.id, data, ahead=self.job.ahead), self._is_registered)
        elif turn.exhausted or self._world.is_enough(turn.round):
            self._finish()
        elif data is not None and not turn.samples:
            self._leaving = self.retiring
            self._vote(contributes=False)
        else:
            self.later(self._world.compute(self._pace), self._step)

    def _prefer_some(self, turn: Turn) -> None:
        """As a stage of a pipeline does, whose layers are its own."""
        if self.job.prefers:
            own = [block for block in self.job.block_ids if block % turn.world == turn.rank]
            blocks = joined((block, BlockId(block + 1)) for block in own)
            if blocks != self._preferred:
                self._preferred = blocks
                self._prefer(blocks)

    def _is_registered(self, answer: Answer) -> None:
        assert isinstance(answer, Registered)
        self._registered = True
        self.turn = answer.turn
        self.commit = answer.commit if self.job.in_rounds else self.commit
        self._go_on(answer.turn)

    def _finish(self) -> None:
        """Audit what the blocks applied of this worker, then leave."""
        self._each(Kind.STATUS, self.proof, self._audited)

    def _audited(self, tallies: dict[BlockId, Tally]) -> None:
        self.check.audited(self, tallies)
        through = self.turn is not None and self.turn.rank == 0 and self.turn.exhausted
        self.say(Leave(self.id, through), lambda _: self._end("succeeded"))

    def _end(self, how: str) -> None:
        self.clock.note(f"worker {self.id} {how}")
        self._ended(how)
        self.kill()
        self._network.closed(self, silent=False)

    # -- a step ---------------------------------------------------------------------------------

    def _step(self) -> None:
        if self.job.at_once:
            self._push_at_once()
        else:
            self._step_in_round()

    def _push_at_once(self) -> None:
        """Before the round, and in none: it is not pushed again when that begins anew."""
        turn, missing = self.turn, self.job.blocks_at_once
        assert turn is not None
        seq = self._seq = Seq(self._seq + 1)
        self.check.attempted(self, seq, turn)

        def asked(block: BlockId) -> None:
            def done(status: Status, _: Any) -> None:
                self.check.pushed(self, block, seq, status)
                missing.remove(block)
                if not missing:
                    self._step_in_round()

            body = PushBody(turn.generation, 1, None)
            self.call(Kind.PUSH, block, body, done, seq=seq, round_=turn.round)

        for block in self.job.blocks_at_once:
            asked(block)

    def _step_in_round(self) -> None:
        assert self.turn is not None
        if self.turn.round % self.job.push_every:
            self._leaving = self.retiring
            self._vote_apart()
            return
        self._seq = Seq(self._seq + 1)
        self._called = None
        self._leaving = self.retiring
        self.check.attempted(self, self._seq, self.turn)
        self._push()

    def _push(self) -> None:
        turn = self.turn
        assert turn is not None
        if self.job.backup_workers:
            self.say(Ready(self.id, turn.round, turn.generation), self._is_called)
        else:
            self._push_all(turn, turn.pushers)

    def _is_called(self, answer: Answer) -> None:
        assert self.turn is not None
        self._called = answer if isinstance(answer, Called) else Called(0, contributes=False)
        if self._called.contributes:
            self._push_all(self.turn, self._called.pushers)
        else:
            self._vote()

    def _push_all(self, turn: Turn, pushers: int) -> None:
        if self.job.in_rounds and not self._attends(turn.generation):
            self._vote()
            return
        self._stale = False
        body = PushBody(turn.generation, pushers, self.proof.commit)
        blocks = self.job.round_blocks if self.job.in_rounds else self.job.block_ids
        calls = [self._push_call(block, body, turn) for block in blocks]
        self._pushes = {call.block: call for call in calls}
        self._ask_each(calls)

    def _push_call(self, block: BlockId, body: PushBody, turn: Turn) -> Call:
        seq = self._seq

        def done(status: Status, norm: Any) -> None:
            self.check.pushed(self, block, seq, status)
            del self._pushes[block]
            self._stale = self._stale or status is not Status.OK
            self._norms[block] = norm
            if not self._pushes and not (self._stale and self.job.in_rounds):
                self._clip()
                self._vote()

        return Call(Kind.PUSH, block, body, done, seq, turn.round)

    def _clip(self) -> None:
        """What stands for the scale: all blocks' norms are in it."""
        if self.job.in_rounds:
            self._scale = sum(self._norms[block] for block in self.job.round_blocks)

    def _attends(self, generation: Generation) -> bool:
        """See that the ledger tells when ``generation`` is over; False when it has."""
        if generation != self._generation:
            if self._attending is not None:
                self.cancel(self._attending)
            self._generation = generation
            word = Attend(self.id, generation)
            self._attending = self.call(
                Kind.LEDGER, LEDGER, word, lambda _, answer: self._regenerated(answer)
            )
        return self._attending is not None

    def _regenerated(self, answer: Answer) -> None:
        """The set of workers is another: what waits in the blocks is not waited for any more."""
        self._attending = None
        waiting = bool(self._pushes) or self._stale
        if isinstance(answer, Refused) and waiting:
            self._refused(answer)
            return
        for call in self._pushes.values():
            self.cancel(call)
        self._pushes = {}
        if waiting:
            self._stale = False
            self._vote()

    def _vote(self, *, contributes: bool = True) -> None:
        turn = self.turn
        assert turn is not None
        wants = contributes
        if self._called is not None:
            contributes = contributes and self._called.contributes
        ballot = Vote(
            self.id,
            turn.round,
            turn.generation,
            contributes,
            self._leaving,
            seq=self._seq,
            scale=self._scale,
            speed=1.0 + self.id % 3,
        )

        def told(answer: Answer) -> None:
            if isinstance(answer, Regenerated):
                self.turn, self._called = answer.turn, None
                if wants:
                    self._push()
                else:
                    self._vote(contributes=False)
                return
            assert isinstance(answer, Committed)
            self.turn, self.commit, self._floor = answer.turn, answer.commit, answer.floor
            self._counted = contributes and answer.counted
            self.check.voted(self, ballot, answer, self._seq if wants else None)
            self._read()

        self.say(ballot, told)

    def _vote_apart(self) -> None:
        """End a round for which the workers have exchanged among themselves."""
        turn = self.turn
        assert turn is not None
        ballot = Vote(self.id, turn.round, turn.generation, leaving=self._leaving, pushed=False)

        def told(answer: Answer) -> None:
            if isinstance(answer, Regenerated):
                self.turn = answer.turn
                self._vote_apart()
                return
            assert isinstance(answer, Committed)
            self.turn, self.commit = answer.turn, answer.commit
            self.check.voted(self, ballot, answer, None)
            self.check.went_on()
            if self.turn is None:
                self._end("left")
            else:
                self._go_on(self.turn)

        if self._world.exchange_fails():
            seats = turn.generation % 2 == 0
            self.say(Regroup(self.id, turn.generation, seats), told)
        else:
            self.check.attempted_apart(self, turn)
            self.say(ballot, told)

    @property
    def round(self) -> Round:
        return self.commit.round if self.commit else Round(0)


def _ignore(_: Call) -> None:
    return None
