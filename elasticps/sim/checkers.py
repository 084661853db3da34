"""The promises, held against what happens in a simulated cluster, at every step."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from typing import TYPE_CHECKING

from elasticps.core.audit import Tally, compare
from elasticps.core.clock_ledger import ClockLedger
from elasticps.core.commands import (
    Admitted,
    Answers,
    Command,
    Committed,
    Cut,
    Registered,
    Turn,
    Vote,
)
from elasticps.core.ids import BlockId, Generation, PlanEpoch, Round, Seq, ServerId, WorkerId
from elasticps.core.plan import Entry
from elasticps.core.ranges import Range, Supply, less
from elasticps.core.replica import Commit
from elasticps.core.replication import Role
from elasticps.sim.messages import Fingerprint, Pushes, Saved, Status, Value, norm_of

if TYPE_CHECKING:
    from elasticps.sim.block import Block
    from elasticps.sim.hosting import Hosted
    from elasticps.sim.ledger import LedgerHost
    from elasticps.sim.scenario import Job
    from elasticps.sim.worker import Worker
    from elasticps.sim.world import World

Push = tuple[WorkerId, Seq]
Log = tuple[Pushes, ...]
JOINED = Round(-1)
"""In place of a clock: what a worker was told when it became a member."""


class Violation(Exception):
    """A promise was broken. ``checker`` names the one that saw it."""

    def __init__(self, checker: str, what: str) -> None:
        super().__init__(f"{checker}: {what}")
        self.checker = checker


class Checkers:
    """What was attempted, acknowledged, refused, committed and read so far."""

    def __init__(self, world: World) -> None:
        self.first_ack = self.last_ack = -1
        self.attempts: dict[Push, tuple[Range, ...]] = {}
        self.acknowledged: dict[BlockId, dict[Push, bool]] = {}
        self.refusals: dict[Push, bool] = {}
        self._own: dict[tuple[WorkerId, BlockId], list[Push]] = {}
        self._world = world
        self._commits: dict[Round, tuple[WorkerId, ...]] = {}
        self._apart: dict[tuple[Round, Generation], dict[WorkerId, tuple[Range, ...]]] = {}
        self._ended_apart: dict[Round, Generation] = {}
        self._applied: dict[Round, Pushes] = {}
        self._primaries: dict[tuple[BlockId, PlanEpoch], ServerId] = {}
        self._serving: dict[BlockId, PlanEpoch] = {}
        self._read: dict[tuple[WorkerId, BlockId], tuple[int, Log]] = {}
        self._floors: dict[tuple[WorkerId, Round], dict[WorkerId, Seq]] = {}
        self._bounds: dict[tuple[WorkerId, Round], dict[WorkerId, Seq]] = {}
        self._votes: dict[tuple[WorkerId, Round], Seq] = {}
        self._known: dict[WorkerId, tuple[WorkerId, Round]] = {}
        self._saved: list[tuple[BlockId, Log]] = []
        self._contents: dict[int, tuple[Log, dict[Push, bool]]] = {}

    def fail(self, checker: str, what: str) -> None:
        raise Violation(checker, what)

    def _hold(self, fine: object, checker: str, what: str) -> None:
        if not fine:
            raise Violation(checker, what)

    def _pushes_in(self, log: Log) -> dict[Push, bool]:
        """The pushes of a log; one log object is read many times."""
        known = self._contents.get(id(log))
        if known is None:
            pushes = dict.fromkeys([push for each in log for push in each], True)
            known = self._contents[id(log)] = (log, pushes)
        return known[1]

    # -- roles ----------------------------------------------------------------------------------

    def adopted(self, hosted: Hosted) -> None:
        """One primary a block an epoch, and it holds the block's state."""
        replication = hosted.replication
        if replication.role is Role.PRIMARY:
            key = (hosted.block, replication.epoch)
            first = self._primaries.setdefault(key, hosted.server.id)
            self._hold(first == hosted.server.id, "one-primary", f"{key}: two of them")
            self._hold(replication.holds_state, "one-primary", f"{key} holds nothing")

    def admitted(self, hosted: Hosted) -> None:
        """A server that was declared dead does not serve beside its successor."""
        block, epoch = hosted.block, hosted.replication.epoch
        newest = self._serving.get(block, PlanEpoch(0))
        if epoch >= newest:
            self._serving[block] = epoch
            return
        declared_dead = not self._world.lease_holds(hosted.server)
        self._hold(
            not declared_dead,
            "ownership",
            f"{hosted.server.id} serves block {block} under {epoch}, another under {newest}",
        )

    def planned(self, entries: tuple[Entry, ...]) -> None:
        for entry in entries:
            servers = entry.servers
            self._hold(len(dict.fromkeys(servers)) == len(servers), "one-primary", f"{entry}")

    def given_up(self, orphaned: list[list[ServerId]]) -> None:
        """A job is lost only where some block has no holder that lives."""
        alive = self._world.is_alive
        gone = [each for each in orphaned if not any(alive(server) for server in each)]
        self._hold(gone, "lost", f"given up, though of {orphaned} some live")

    # -- replicas -------------------------------------------------------------------------------

    def followed(self, hosted: Hosted, version: int, fingerprint: Fingerprint) -> None:
        """A backup that has taken a primary's version is what that primary was."""
        mine = hosted.fingerprint()
        if hosted.replication.version != version or mine != fingerprint:
            name = f"block {hosted.block} v{version} on {hosted.server.id}"
            self.fail("replica-equality", f"{name}:\n  {mine}\n  {fingerprint}")

    def applied(self, block: Block, round_: Round, pushes: Pushes, scale: float) -> None:
        """A round is the same pushes in every block, those of the commit's contributors.

        All replicas scale it alike: by the norms of these pushes' mean, in all its blocks.
        """
        right = len(self._world.job.round_blocks) * norm_of(pushes)
        what = f"round {round_} of block {block.block} by {scale}, not {right}"
        self._hold(scale == right or not pushes, "one-scale", what)
        known = self._applied.setdefault(round_, pushes)
        self._hold(
            known == pushes,
            "whole-rounds",
            f"round {round_}: {known} and {pushes} in {block.block}",
        )
        contributors = self._commits.get(round_)
        if contributors is not None and sorted(contributors) != [name for name, _ in pushes]:
            self.fail("whole-rounds", f"round {round_} of {contributors}: {pushes}")

    def value_read(self, block: Block, value: Value) -> None:
        """No push counts twice in what is read, all were attempted, and none can be lost yet."""
        durable = block.replication.durable
        if value.version > durable:
            self.fail(
                "durable-reads", f"v{value.version} of block {block.block}, durable {durable}"
            )
        if id(value.log) in self._contents:
            return
        pushes = self._pushes_in(value.log)
        if len(pushes) != sum(map(len, value.log)):
            self.fail("one-hot", f"a push twice in {value.log}")
        if any(push not in self.attempts for push in pushes):
            self.fail("counter-bounds", f"never pushed: {value.log}")

    # -- the ledger -----------------------------------------------------------------------------

    def commanded(self, host: LedgerHost, command: Command, answers: Answers) -> None:
        """What a ledger's answers allow, and what whoever got them must see from then on."""
        ledger = host.ledger
        if not isinstance(ledger, ClockLedger):
            return
        self._lent_once(ledger, answers)
        if isinstance(command, Vote) and command.contributes:
            self._votes.setdefault((command.worker, command.round), command.seq)
        for worker, answer in answers:
            if worker in ledger.clocks and isinstance(answer, Committed):
                self._goes_on(worker, ledger)
            elif worker in ledger.clocks and isinstance(answer, Admitted):
                self._floors.setdefault((worker, JOINED), self._seqs(list(ledger.clocks.items())))

    def _lent_once(self, ledger: ClockLedger, answers: Answers) -> None:
        """No sample is two workers' at a time, and nobody ends while some are to be read."""
        reserved = [parts for steps in ledger.reserved.values() for parts in steps]
        open_ = [*ledger.leases.values(), *ledger.kept.values(), *reserved]
        parts = [*ledger.supply.given_back, *(part for each in open_ for part in each)]
        in_order = sorted(parts, key=lambda part: part.start)
        for one, other in pairwise(in_order):
            self._hold(one.stop <= other.start, "samples", f"{one} and {other} in {in_order}")
        ended = any(
            answer.turn is not None and answer.turn.exhausted
            for _, answer in answers
            if isinstance(answer, Admitted | Committed | Registered)
        )
        self._hold(not (ended and parts), "samples", f"{parts} are to be read at the end")

    def _goes_on(self, worker: WorkerId, ledger: ClockLedger) -> None:
        """A worker may take its next step; what it reads from now on must have these pushes."""
        clock, bound = ledger.clocks[worker], ledger.staleness
        clocks = list(ledger.clocks.items())
        self._floors.setdefault((worker, clock), self._seqs(clocks))
        if bound is None:
            return
        slowest = min(ledger.clocks.values())
        if clock - slowest > bound:
            what = f"goes on at {clock}, the slowest is at {slowest}"
            self.fail("staleness", f"worker {worker} {what}")
        due = [(name, Round(min(at, clock - bound))) for name, at in clocks]
        self._bounds.setdefault((worker, clock), self._seqs(due))

    def _seqs(self, clocks: list[tuple[WorkerId, Round]]) -> dict[WorkerId, Seq]:
        return {key[0]: self._votes[key] for key in clocks if key in self._votes}

    def joined(self, worker: Worker) -> None:
        self._known[worker.id] = (worker.id, JOINED)
        self.told(worker, worker.commit)

    def told(self, worker: Worker, commit: Commit | None) -> None:
        if commit is not None and worker.job.in_rounds:
            known = self._commits.setdefault(commit.round, commit.contributors)
            self._hold(known == commit.contributors, "whole-rounds", f"{commit}, and {known}")
            if commit.apart:
                first = self._ended_apart.setdefault(commit.round, commit.generation)
                self._hold(first == commit.generation, "whole-rounds", f"{commit}, and {first}")

    # -- pushes ---------------------------------------------------------------------------------

    def attempted_apart(self, worker: Worker, turn: Turn) -> None:
        """A round without pushes counts the samples of all who vote for it, if it is whole."""
        votes = self._apart.setdefault((turn.round, turn.generation), {})
        votes[worker.id] = turn.samples

    def went_on(self) -> None:
        """Something was acknowledged: a push, or a round without pushes."""
        now = self._world.clock.now
        if self.first_ack < 0:
            self.first_ack = now
        self.last_ack = now

    def attempted(self, worker: Worker, seq: Seq, turn: Turn) -> None:
        self.attempts[worker.id, seq] = turn.samples

    def pushed(self, worker: Worker, block: BlockId, seq: Seq, status: Status) -> None:
        """Where there are no rounds, a push is acknowledged by each block for itself."""
        if not worker.job.has_rounds(block):
            self._hold(status is Status.OK, "refused", f"push {worker.id}:{seq} {status}")
            self._acknowledge(block, (worker.id, seq))

    def _acknowledge(self, block: BlockId, push: Push) -> None:
        self.went_on()
        self.acknowledged.setdefault(block, {})[push] = True
        self._own.setdefault((push[0], block), []).append(push)

    def voted(self, worker: Worker, vote: Vote, answer: Committed, seq: Seq | None) -> None:
        """A whole round acknowledges the pushes that it counts, and refuses the others."""
        self.told(worker, answer.commit)
        if worker.job.in_rounds and seq is not None:
            if vote.contributes and answer.counted:
                counted = worker.id in self._commits.get(vote.round, (worker.id,))
                self._hold(counted, "whole-rounds", f"{vote} was told that it counts")
                for block in worker.job.round_blocks:
                    self._acknowledge(block, (worker.id, seq))
            else:
                self.refusals[worker.id, seq] = True
        self._known[worker.id] = (worker.id, answer.commit.round)
        self._world.progressed()

    # -- reads ----------------------------------------------------------------------------------

    def pulled(self, worker: Worker, values: dict[BlockId, Value]) -> None:
        """What a worker has read of all blocks, after what it was told."""
        for block, value in values.items():
            self._history(worker, block, value)
            self._acknowledged_is_read(worker, block, value)
        if worker.job.in_rounds:
            self._whole(worker, {block: values[block] for block in worker.job.round_blocks})
        else:
            self._fresh(worker, values)

    def _history(self, worker: Worker, block: BlockId, value: Value) -> None:
        """Neither version nor value goes back for a reader: what was read once stays."""
        version, log = self._read.get((worker.id, block), (0, ()))
        self._read[worker.id, block] = (value.version, value.log)
        if value.version < version or value.log[: len(log)] != log:
            what = f"v{version} {log}, then v{value.version} {value.log}"
            self.fail("version-history", f"worker {worker.id} block {block}: {what}")

    def _acknowledged_is_read(self, worker: Worker, block: BlockId, value: Value) -> None:
        """A worker reads its own acknowledged pushes."""
        read = self._pushes_in(value.log)
        for push in self._own.get((worker.id, block), ()):
            if push not in read:
                self.fail("version-history", f"{push} is not in {value.log}")

    def _whole(self, worker: Worker, values: dict[BlockId, Value]) -> None:
        """The bank: what one block has of the rounds so far, every other has too."""
        count = min(len(value.log) for value in values.values())
        logs = [value.log[:count] for value in values.values()]
        if any(log != logs[0] for log in logs):
            self.fail("bank", f"{logs}")
        behind = [block for block, value in values.items() if value.round < worker.round]
        if behind:
            self.fail("version-history", f"{behind} are not at round {worker.round}")

    def _fresh(self, worker: Worker, values: dict[BlockId, Value]) -> None:
        """Whatever the ledger knew to be acknowledged when it let this worker go on is read."""
        key = self._known.get(worker.id)
        if key is None:
            return
        for checker, due in (("staleness", self._bounds), ("counter-bounds", self._floors)):
            for other, seq in due.get(key, {}).items():
                for block, value in values.items():
                    if (other, seq) not in self._pushes_in(value.log):
                        what = f"{other}:{seq} is not in block {block}"
                        self.fail(checker, f"worker {worker.id} at {key[1]}: {what}")

    # -- checkpoints ----------------------------------------------------------------------------

    def saved(self, job: Job, blocks: dict[BlockId, Saved], cut: Cut, *, exact: bool) -> None:
        """A checkpoint is of one moment, where there is one, and of nothing that can be lost.

        What it says to have been read is in its values.
        """
        for block, each in blocks.items():
            self._saved.append((block, each.log))
            if exact and job.has_rounds(block) and each.round != cut.round:
                self.fail("checkpoint-cut", f"block {block} at {each.round}, not {cut.round}")
        if exact:
            logs = [blocks[block].log for block in job.round_blocks]
            self._hold(logs[1:] == logs[:-1], "checkpoint-cut", f"{cut}: {logs}")
        if job.data is not None and exact and job.push_every == 1:
            kept = list(cut.supply.given_back)
            self.samples(blocks[BlockId(1)].log, kept, cut.supply.position, None)
        if job.data is not None and not job.in_rounds:
            for each in blocks.values():
                self.covered(each.log, cut.supply)

    def covered(self, log: Log, supply: Supply) -> None:
        """Every sample that was lent is in a push at least, or is to be read yet."""
        pushed = (part for each in log for push in each for part in self.attempts[push])
        missing = less((Range(0, supply.position),), (*pushed, *supply.given_back))
        self._hold(not missing, "samples", f"{missing} are in no push")

    # -- the end of a worker --------------------------------------------------------------------

    def refused(self, worker: Worker, reason: str) -> None:
        """Only a worker that was declared dead is refused."""
        listed = self._world.is_listed(worker)
        self._hold(not listed, "refused", f"worker {worker.id}: {reason}")

    def audited(self, worker: Worker, tallies: dict[BlockId, Tally]) -> None:
        for block, tally in tallies.items():
            mine = worker.tally
            if not worker.job.has_rounds(block):
                mine = Tally()
                for _, seq in self._own.get((worker.id, block), ()):
                    mine = mine.plus(seq)
            verdict = compare(mine, tally)
            fine = not (verdict.lost or verdict.duplicated)
            self._hold(fine, "audit", f"worker {worker.id} block {block}: {verdict}")

    # -- the end --------------------------------------------------------------------------------

    def finished(self, logs: dict[BlockId, tuple[Pushes, ...]]) -> None:
        """One-hot: acknowledged once, unknown at most once, refused never; in every block."""
        for block, log in logs.items():
            counts = Counter(push for each in log for push in each)
            for push, count in counts.items():
                self._hold(count == 1, "one-hot", f"{push} {count} times in block {block}")
                self._hold(push in self.attempts, "one-hot", f"{push} was never pushed")
                self._hold(push not in self.refusals, "one-hot", f"{push} was refused")
            for push in self.acknowledged.get(block, {}):
                self._hold(push in counts, "one-hot", f"{push} is lost in block {block}")
        for block, saved in self._saved:
            final = logs[block][: len(saved)]
            self._hold(saved == final, "checkpoint-cut", f"block {block}: {saved}, then {final}")

    def samples(self, log: Log, kept: list[Range], position: int, last: Commit | None) -> None:
        """Every sample that was lent is in one push that counts, or is lent or given back.

        Those of a round without pushes are in a vote for it in place of a push.
        """
        ranges = [part for each in log for push in each for part in self.attempts[push]]
        if last is not None and last.apart:
            self._ended_apart.setdefault(last.round, last.generation)
        for key in self._ended_apart.items():
            ranges += [part for samples in self._apart.get(key, {}).values() for part in samples]
        counts = Counter(at for part in [*ranges, *kept] for at in range(part.start, part.stop))
        self._hold(
            counts == Counter(range(position)),
            "samples",
            f"up to {position}: {sorted((at, n) for at, n in counts.items() if n != 1)}",
        )
