"""A simulated block: ``server/parameter_block.py``, and what that builds on, with whose pushes it
holds for its numbers."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from elasticps.core.audit import Tally, mix
from elasticps.core.ids import BlockId, Round, WorkerId
from elasticps.core.plan import Entry
from elasticps.core.replica import Commit, Push, PushOutcome, Replica, RoundOp, Settled
from elasticps.core.replication import Check, Replication, Role
from elasticps.sim.hosting import Hosted
from elasticps.sim.messages import (
    BlockSnapshot,
    Fingerprint,
    Kind,
    Message,
    Op,
    PullBody,
    PushBody,
    Pushes,
    Request,
    SaveBody,
    Saved,
    Status,
    Value,
    norm_of,
)
from elasticps.sim.saving import Save

if TYPE_CHECKING:
    from elasticps.sim.server import Server

FIRST_VALUE = mix(0)


class Block(Hosted):
    """One replica of one block. ``log`` is its value: what was applied, in order."""

    as_of_request = True
    """A push that is applied at once, while a read waits, is not in what the read is answered."""

    def __init__(self, server: Server, block: BlockId) -> None:
        super().__init__(server, block)
        job = server.job
        in_rounds = job.has_rounds(block)
        self.replica = Replica(me=server.id, in_rounds=in_rounds, min_insync=job.min_insync)
        self.log: tuple[Pushes, ...] = ()
        self._gradients: dict[WorkerId, Push] = {}
        self._held: dict[WorkerId, Request] = {}
        self._prepared: Pushes = ()
        self._answers: dict[Request, Value | Saved] = {}
        self._save: Save | None = None

    @property
    def replication(self) -> Replication:
        return self.replica.replication

    def fingerprint(self) -> Fingerprint:
        replica = self.replica
        return (
            replica.round,
            replica.initialized,
            self.log,
            sorted(replica.applied.items()),
            replica.prepared,
            self._prepared,
        )

    def settled_log(self, last: Commit | None) -> tuple[Pushes, ...]:
        """The log as of ``last``: with the prepared round, if that is one that it proves."""
        due = self.replica.settle(last) is Settled.APPLY
        return (*self.log, self._prepared) if due else self.log

    # -- a worker's requests --------------------------------------------------------------------

    def ask(self, request: Request) -> None:
        match request.message.kind:
            case Kind.PUSH:
                self._push(request, request.message.body)
            case Kind.INIT:
                self._initialize(request)
            case Kind.SAVE:
                self._save_for(request, request.message.body)
            case _:
                self._read(request, request.message.body)

    def _push(self, request: Request, body: PushBody) -> None:
        if self._must_wait(request, body.commit, lambda: self._push(request, body)):
            return
        if not self._is_up_to(request, body.commit):
            return
        message = request.message
        push = Push(
            worker=message.worker,
            seq=message.seq,
            round=message.round,
            generation=body.generation,
            pushers=body.pushers,
        )
        outcome = self.replica.push(push)
        self._keep_only_staged()
        match outcome:
            case PushOutcome.STALE_GENERATION:
                request.answer(Status.STALE_GENERATION)
            case PushOutcome.OUT_OF_TURN:
                request.answer(Status.CONFLICT)
            case PushOutcome.REPEATED:
                self.perform(self.replication.answer_when_durable(request))
            case PushOutcome.HELD:
                self._hold(message.worker, request)
            case PushOutcome.APPLY:
                self._update(request, push)
            case PushOutcome.STAGE | PushOutcome.PREPARE:
                self._hold(message.worker, request)
                self._gradients[message.worker] = push
                if outcome is PushOutcome.PREPARE:
                    self._prepare()

    def _hold(self, worker: WorkerId, request: Request) -> None:
        earlier = self._held.pop(worker, None)
        if earlier is not None:
            earlier.answer(Status.FENCED)
        self._held[worker] = request

    def _keep_only_staged(self) -> None:
        staged = self.replica.staged
        for worker in [name for name in self._gradients if name not in staged]:
            del self._gradients[worker]
        for worker in [name for name in self._held if name not in staged]:
            self._held.pop(worker).answer(Status.STALE_GENERATION)

    def _read(self, request: Request, body: PullBody) -> None:
        if self._must_wait(request, body.commit, lambda: self._read(request, body)):
            return
        if not self._is_up_to(request, body.commit):
            return
        if not (self.replica.initialized and self.replica.has(body.floor)):
            request.answer(Status.BEHIND)
            return
        at_once = self.as_of_request and not self.replica.in_rounds
        if at_once and request.message.kind is Kind.PULL:
            self._answers[request] = self._value
        self.perform(self.replication.answer_when_durable(request))

    @property
    def _value(self) -> Value:
        replication = self.replication
        version = replication.durable if self.replica.in_rounds else replication.version
        return Value(version, self.replica.round, self.log)

    def _initialize(self, request: Request) -> None:
        if not self.replica.untrained:
            request.answer(Status.CONFLICT)
            return
        version = self.replica.initialize(request.message.round, FIRST_VALUE)
        self.log = ()
        self.publish(Op(version, self.fingerprint(), initial=True))
        self.perform(self.replication.answer_when_durable(request))

    def answer_durable(self, request: Request) -> None:
        match request.message.kind:
            case Kind.PULL:
                value = self._answers.pop(request, None) or self._value
                assert isinstance(value, Value)
                self.server.check.value_read(self, value)
                request.answer(Status.OK, value)
            case Kind.SAVE:
                request.answer(Status.OK, self._answers.pop(request, None))
            case Kind.STATUS:
                row = self.replica.applied.get(request.message.worker)
                request.answer(Status.OK, row.tally if row else Tally())
            case Kind.PUSH:
                request.answer(Status.OK, norm_of(self._prepared))
            case _:
                request.answer(Status.OK)

    # -- checkpoints ----------------------------------------------------------------------------

    def _save_for(self, request: Request, body: SaveBody) -> None:
        if self._save is None or self._save.draft != body.draft:
            commit, replica = body.proof.commit, self.replica
            if not self._is_up_to(request, commit):
                return
            if not (replica.initialized and replica.has(body.proof.floor)):
                request.answer(Status.BEHIND)
                return
            exact = body.exact and replica.in_rounds
            if exact and commit is not None and replica.round != commit.round:
                request.answer(Status.CONFLICT)
                return
            self._begin_save(body.draft, replica.round if exact else None)
        assert self._save is not None
        if body.written:
            self._save.ask(request)
        else:
            request.answer(Status.OK)

    def _begin_save(self, draft: str, limit: Round | None) -> None:
        if self._save is not None:
            self._save.give_up()
        self._save = Save(
            draft, limit, lambda: Saved(self.replica.round, self.log), self._answer_saved
        )
        self.server.later(self.server.world.copy_delay(), self._save.write)

    def _answer_saved(self, request: Request, saved: Saved) -> None:
        self._answers[request] = saved
        self.perform(self.replication.answer_when_durable(request))

    def _must_wait(
        self, request: Request, commit: Commit | None, go_on: Callable[[], None]
    ) -> bool:
        """Hold a request that would carry the block past a round that is yet to be copied."""
        if self._save is None or commit is None or not self._is_held(commit):
            return False
        self._save.held.append((request, go_on))
        return True

    def _is_held(self, commit: Commit) -> bool:
        return self._save is not None and self._save.holds(commit.round)

    # -- rounds ---------------------------------------------------------------------------------

    def _is_up_to(self, request: Request, commit: Commit | None) -> bool:
        while (settled := self.replica.settle(commit)) not in (Settled.DONE, Settled.MISSING):
            assert commit is not None
            if settled is Settled.APPLY:
                self._apply(commit)
            elif settled is Settled.SKIP:
                self._skip(commit)
            else:
                self._publish(self.replica.empty_round(commit), ())
        if settled is Settled.MISSING:
            request.answer(Status.BEHIND)
        return settled is Settled.DONE

    def _skip(self, commit: Commit) -> None:
        self.replica.skip(commit)
        self._prepared = ()
        for request in self._held.values():
            request.answer(Status.STALE_GENERATION)
        self._held, self._gradients = {}, {}

    def _prepare(self) -> None:
        gradient = tuple(
            (worker, self._gradients[worker].seq) for worker in sorted(self._gradients)
        )
        waiting = list(self._held.values())
        self._gradients, self._held = {}, {}
        self._publish(self.replica.staged_round(), gradient)
        for request in waiting:
            self.perform(self.replication.answer_when_durable(request))

    def _publish(self, op: RoundOp, gradient: Pushes) -> None:
        base = self.replica.last
        version = self.replica.prepare(op)
        self._prepared = gradient
        self.publish(Op(version, self.fingerprint(), op=op, gradient=gradient, commit=base))

    def _apply(self, commit: Commit) -> None:
        """Apply the prepared round; the server's other blocks take theirs in the same step.

        What a commit proves it proves of every block, whichever hears of it first.
        """
        self.apply_prepared(commit.scale)
        for other in list(self.server.hosted.values()):
            if isinstance(other, Block) and other is not self and other.is_due(commit):
                other.apply_prepared(commit.scale)

    def is_due(self, commit: Commit) -> bool:
        if self._is_held(commit) or not self.replica.in_rounds:
            return False
        return self.replica.settle(commit) is Settled.APPLY

    def apply_prepared(self, scale: float) -> None:
        op = self.replica.apply_prepared(scale)
        self.log = (*self.log, self._prepared)
        self._prepared = ()
        self.server.check.applied(self, op.round, self.log[-1], scale)
        assert self.replica.last is not None
        self.prove(self.replica.last)

    def _update(self, request: Request, push: Push) -> None:
        pushes = ((push.worker, push.seq),)
        self.log = (*self.log, pushes)
        op = RoundOp(push.round, push.generation, pushes)
        version = self.replica.update(op)
        self.publish(Op(version, self.fingerprint(), op=op, gradient=pushes, at_once=True))
        self.perform(self.replication.answer_when_durable(request))

    # -- replication ----------------------------------------------------------------------------

    def snapshot(self) -> BlockSnapshot:
        replica = self.replica
        return BlockSnapshot(
            version=self.replication.version,
            history=self.replication.history,
            fingerprint=self.fingerprint(),
            round=replica.round,
            generation=replica.generation,
            initialized=replica.initialized,
            applied=dict(replica.applied),
            log=self.log,
            prepared=replica.prepared,
            gradient=self._prepared,
        )

    def install(self, snapshot: BlockSnapshot) -> None:
        replica = self.replica
        replica.drop_staged()
        replica.round, replica.generation = snapshot.round, snapshot.generation
        replica.initialized, replica.applied = snapshot.initialized, dict(snapshot.applied)
        replica.prepared = snapshot.prepared
        self.log, self._prepared = snapshot.log, snapshot.gradient
        self.replication.install(snapshot.version, snapshot.history)
        self._refuse_held()

    def follow(self, op: Op) -> bool:
        if op.initial:
            self.log = ()
            self.replica.initialized = True
            self.replication.follow(FIRST_VALUE)
            return True
        if op.op is None or not self._caught_up(op.commit):
            return False
        if op.at_once:
            self.log = (*self.log, op.gradient)
            self.replica.update(op.op, following=True)
        else:
            self.replica.prepare(op.op, following=True)
            self._prepared = op.gradient
        return True

    def take_proof(self, message: Message) -> bool:
        """Apply what the primary has applied, ahead of the op that would ask for it."""
        check = self.replication.check_proof(message.epoch)
        return check is Check.OK and self._caught_up(message.body)

    def _caught_up(self, commit: Commit | None) -> bool:
        while (settled := self.replica.settle(commit)) is not Settled.DONE:
            assert commit is not None
            if settled is Settled.APPLY:
                self._apply(commit)
            elif settled is Settled.SKIP:
                self._skip(commit)
            else:
                return False
        return True

    def adopt(self, entry: Entry) -> None:
        super().adopt(entry)
        if self.replication.role is not Role.PRIMARY:
            self.refuse_waiting()

    def refuse_waiting(self) -> None:
        if self._save is not None:
            self._save.give_up()
            self._save = None
        self.replica.drop_staged()
        self._refuse_held()

    def _refuse_held(self) -> None:
        for request in self._held.values():
            request.answer(Status.FENCED)
        self._held, self._gradients, self._answers = {}, {}, {}
