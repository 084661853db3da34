"""What workers say to a job's ledger and what it answers. All of it may be said again."""

from __future__ import annotations

import msgspec

from elasticps.core.ids import Generation, Round, Seq, WorkerId
from elasticps.core.ranges import DataSpec, Range, Supply
from elasticps.core.replica import Commit

LARGEST = 1 << 62
"""More rounds or samples than any job has; what is counted stays within 64 bits."""


class Cut(msgspec.Struct, frozen=True, array_like=True):
    """Where a job stands between two rounds: what a checkpoint keeps beside the blocks.

    ``supply`` counts what was lent for the round under way as not read.
    """

    round: Round
    data: DataSpec | None
    supply: Supply

    @property
    def is_sound(self) -> bool:
        """Are all its numbers such as a ledger makes?"""
        ranges = self.supply.given_back
        whole = all(0 <= part.start < part.stop <= self.supply.position for part in ranges)
        return whole and 0 <= self.round < LARGEST and 0 <= self.supply.position < LARGEST


# -- commands: each is an op of the ledger --------------------------------------------------------


class Join(msgspec.Struct, frozen=True, tag=True):
    worker: WorkerId


class Initialized(msgspec.Struct, frozen=True, tag=True):
    """The initializer has given every block its first value, as of ``cut`` where it resumes."""

    worker: WorkerId
    cut: Cut | None = None


class Register(msgspec.Struct, frozen=True, tag=True):
    """Say what data the job reads; the first worker's word counts, the others' must agree.

    ``policy``: the built-in data policy that the script asks for; empty for the job's own.
    ``ahead``: of how many rounds to come this worker likes to know its samples, to load them.
    """

    worker: WorkerId
    data: DataSpec
    policy: str = ""
    ahead: int = 0


class Hold(msgspec.Struct, frozen=True, tag=True):
    """These positions of data epochs to come lie on the worker's node, and no others.

    In order, disjoint and in as few pieces as can be. ``number`` counts what a worker says.
    """

    worker: WorkerId
    number: int
    parts: tuple[Range, ...]


class Ready(msgspec.Struct, frozen=True, tag=True):
    """This worker has its gradient. Asked only where a round does not wait for the slowest."""

    worker: WorkerId
    round: Round
    generation: Generation


class Vote(msgspec.Struct, frozen=True, tag=True):
    """All pushes of this worker for the round are acknowledged (or it contributes none).

    ``seq`` is its newest push, for the ledgers that keep clocks. ``keeps`` are samples that it was
    lent and has not read: they stay lent to it, and are read for a later round. ``pushed`` is False
    in a round whose workers exchange what they contribute among themselves: all of them say so.
    ``scale`` is what the round's mean gradient is to be multiplied by; the lowest rank's counts.
    ``speed``: samples a second that its script gets through; 0 where that was not measured.
    """

    worker: WorkerId
    round: Round
    generation: Generation
    contributes: bool = True
    leaving: bool = False
    seq: Seq = Seq(0)
    keeps: tuple[Range, ...] = ()
    pushed: bool = True
    scale: float = 1.0
    speed: float = 0.0


class Leave(msgspec.Struct, frozen=True, tag=True):
    """``through``: the data are read, and this was the main worker, which does what comes then."""

    worker: WorkerId
    through: bool = False


class Observe(msgspec.Struct, frozen=True, tag=True):
    """etcd's list of living workers as of ``revision``: whoever is older and not on it is dead."""

    alive: tuple[WorkerId, ...]
    revision: int


class Publish(msgspec.Struct, frozen=True, tag=True):
    """Leave a note for the other workers; it goes with its worker. See ``core.bulletin``."""

    worker: WorkerId
    key: str
    note: bytes


class Regroup(msgspec.Struct, frozen=True, tag=True):
    """What the members do together has failed although nobody died: begin the round anew.

    ``seats``: it cannot be done without another worker. The round is begun anew once one joins,
    who takes part in it without samples.
    """

    worker: WorkerId
    generation: Generation
    seats: bool = False


class Reduce(msgspec.Struct, frozen=True, tag=True):
    """Add these numbers to those of the other members of the round, and say what they sum up to.

    ``round`` is the last one that is whole, ``number`` counts this worker's requests since.
    """

    worker: WorkerId
    round: Round
    number: int
    numbers: tuple[float, ...]
    weight: float


Command = (
    Join
    | Initialized
    | Register
    | Hold
    | Ready
    | Vote
    | Leave
    | Observe
    | Publish
    | Regroup
    | Reduce
)


# -- questions: they change nothing ---------------------------------------------------------------


class Attend(msgspec.Struct, frozen=True, tag=True):
    """Answer when the set of workers is another than that of ``generation``."""

    worker: WorkerId
    generation: Generation


class Inspect(msgspec.Struct, frozen=True, tag=True):
    """Where does the job stand?"""

    worker: WorkerId


class Lookup(msgspec.Struct, frozen=True, tag=True):
    """Who are the members, and what has each written under ``key``?"""

    worker: WorkerId
    key: str


Question = Attend | Inspect | Lookup


# -- answers --------------------------------------------------------------------------------------


class Turn(msgspec.Struct, frozen=True, kw_only=True):
    """What a worker is to do next: its place among the workers and its samples of the round.

    ``pushers``: how many workers contribute a gradient to the round; ``contributes``: one is this.
    The samples that it kept come first. ``last``: none are left to lend after these.
    ``ahead``: what it is lent for each of the rounds after, if all goes on as it is.
    ``through``: the main worker has left, all data read: rank 0 is not the main one.
    """

    round: Round
    generation: Generation
    rank: int
    world: int
    pushers: int = 1
    contributes: bool = True
    samples: tuple[Range, ...] = ()
    exhausted: bool = False
    last: bool = False
    ahead: tuple[tuple[Range, ...], ...] = ()
    through: bool = False

    @property
    def is_main(self) -> bool:
        return self.rank == 0 and not self.through


Floor = dict[WorkerId, Seq]
"""For each worker the push that the ledger knows to be acknowledged by every block."""


class Admitted(msgspec.Struct, frozen=True, tag=True):
    """The worker counts from ``turn.round`` on. The initializer first gives the blocks values.

    ``begun``: the round that the job began after, a checkpoint's where it was resumed.
    """

    turn: Turn
    commit: Commit | None
    initialize: bool = False
    floor: Floor = {}
    begun: Round = Round(0)


class Through(msgspec.Struct, frozen=True, tag=True):
    """Nothing is left to do: the data are read, and the main worker has ended in order."""


class Called(msgspec.Struct, frozen=True, tag=True):
    """The round is made by ``pushers`` workers. Who is not among them keeps its gradient."""

    pushers: int
    contributes: bool


class Committed(msgspec.Struct, frozen=True, tag=True):
    """The round is whole. ``turn`` is None for a worker that leaves with it.

    ``counted``: the round that was asked about counts the asking worker's gradient.
    """

    commit: Commit
    turn: Turn | None
    counted: bool = True
    floor: Floor = {}


class Regenerated(msgspec.Struct, frozen=True, tag=True):
    """The set of workers changed before the round was whole: push again, vote again."""

    turn: Turn


class Registered(msgspec.Struct, frozen=True, tag=True):
    """``commit``: the last round, which may have gone on without this worker before it asked."""

    turn: Turn
    commit: Commit | None = None


class Held(msgspec.Struct, frozen=True, tag=True):
    pass


class Reduced(msgspec.Struct, frozen=True, tag=True):
    """The sums of the numbers and of the weights that ``givers`` members have given."""

    sums: tuple[float, ...]
    weight: float
    givers: int


class Inspected(msgspec.Struct, frozen=True, tag=True):
    cut: Cut


class Published(msgspec.Struct, frozen=True, tag=True):
    pass


class Found(msgspec.Struct, frozen=True, tag=True):
    """``members`` in rank order; ``notes`` of those who have written one."""

    generation: Generation
    members: tuple[WorkerId, ...]
    notes: dict[WorkerId, bytes]


class Left(msgspec.Struct, frozen=True, tag=True):
    pass


class Refused(msgspec.Struct, frozen=True, tag=True):
    reason: str


Answer = (
    Admitted
    | Through
    | Called
    | Committed
    | Regenerated
    | Registered
    | Held
    | Reduced
    | Inspected
    | Published
    | Found
    | Left
    | Refused
)
Answers = list[tuple[WorkerId, Answer]]
