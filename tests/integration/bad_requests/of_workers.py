"""What workers, or nobody in particular, send."""

from __future__ import annotations

import math

from elasticps.core.commands import Attend, Inspect, Observe, Register, Vote
from elasticps.core.ids import LEDGER, BlockId, Generation, JobKey, Round, Seq, WorkerId
from elasticps.core.ranges import DataSpec
from elasticps.core.replica import Commit
from elasticps.server.tensor_block import MAX_STATE_FACTOR
from elasticps.testing.rig_server import CLUSTER
from elasticps.wire.frame import FLAG_EMPTY, Kind, Status
from elasticps.wire.messages import HelloMeta, PullMeta, PushMeta, encode
from tests.integration.bad_requests.frames import (
    BLOCK_BYTES,
    FAR,
    GARBAGE,
    PULL,
    STRANGER,
    VALUE,
    VOTE,
    Bad,
    command,
    push_meta,
    state,
)

OF_WORKERS = {
    # before or instead of a proper hello
    "push before hello": Bad(kind=Kind.PUSH, caller="", payload=VALUE, expect="kind"),
    "pull before hello": Bad(kind=Kind.PULL, caller="", meta=PULL, expect="kind"),
    "hello of another cluster": Bad(
        kind=Kind.HELLO, caller="", meta=encode(HelloMeta("other", "7")), expect="cluster"
    ),
    "hello of nobody": Bad(
        kind=Kind.HELLO, caller="", meta=encode(HelloMeta(CLUSTER, "")), expect="cluster"
    ),
    "hello of garbage": Bad(kind=Kind.HELLO, caller="", meta=GARBAGE, expect="meta"),
    "a word of the control channel": Bad(kind=Kind.CONTROL, meta=GARBAGE, expect="kind"),
    # for somebody or something else
    "push for another worker": Bad(
        kind=Kind.PUSH, worker=WorkerId(7), meta=push_meta(), payload=VALUE, expect="worker"
    ),
    "pull of another job": Bad(kind=Kind.PULL, job=JobKey(99), meta=PULL, expect=Status.UNKNOWN),
    "push to another job": Bad(
        kind=Kind.PUSH, job=JobKey(99), meta=push_meta(), payload=VALUE, expect=Status.UNKNOWN
    ),
    "vote in another job": Bad(
        kind=Kind.LEDGER, job=JobKey(99), block=LEDGER, meta=VOTE, expect=Status.UNKNOWN
    ),
    "pull of no block": Bad(kind=Kind.PULL, block=BlockId(99), meta=PULL, expect=Status.UNKNOWN),
    "pull of the ledger": Bad(kind=Kind.PULL, block=LEDGER, meta=PULL, expect="block"),
    "vote at a block": Bad(kind=Kind.LEDGER, meta=VOTE, expect="block"),
    # pushes
    "push of too few bytes": Bad(
        kind=Kind.PUSH, meta=push_meta(), payload=VALUE[:-4], expect="payload_length"
    ),
    "push of too many bytes": Bad(
        kind=Kind.PUSH, meta=push_meta(), payload=VALUE + b"1234", expect="payload_length"
    ),
    "push of nothing": Bad(kind=Kind.PUSH, meta=push_meta(), expect="payload_length"),
    "push of garbage": Bad(kind=Kind.PUSH, meta=GARBAGE, payload=VALUE, expect="meta"),
    "push to the ledger": Bad(
        kind=Kind.PUSH, block=LEDGER, meta=push_meta(), payload=VALUE, expect="payload_length"
    ),
    "push of weight NaN": Bad(
        kind=Kind.PUSH, meta=push_meta(math.nan), payload=VALUE, expect=Status.REFUSED
    ),
    "push of weight 0": Bad(
        kind=Kind.PUSH, meta=push_meta(0.0), payload=VALUE, expect=Status.REFUSED
    ),
    "push of weight -1": Bad(
        kind=Kind.PUSH, meta=push_meta(-1.0), flags=FLAG_EMPTY, expect=Status.REFUSED
    ),
    "push of weight infinity": Bad(
        kind=Kind.PUSH, meta=push_meta(math.inf), payload=VALUE, expect=Status.REFUSED
    ),
    "push with an unknown option": Bad(
        kind=Kind.PUSH, meta=push_meta(speed=9), payload=VALUE, expect=Status.REFUSED
    ),
    "push for a round of the past": Bad(
        kind=Kind.PUSH, round=1, meta=push_meta(), payload=VALUE, expect=Status.CONFLICT
    ),
    "push for a round of the future": Bad(
        kind=Kind.PUSH, round=3, meta=push_meta(), payload=VALUE, expect=Status.CONFLICT
    ),
    "push of a round without a number": Bad(
        kind=Kind.PUSH, round=0, meta=push_meta(), payload=VALUE, expect=Status.CONFLICT
    ),
    "push of an old generation": Bad(
        kind=Kind.PUSH,
        meta=push_meta(generation=0),
        payload=VALUE,
        expect=Status.STALE_GENERATION,
    ),
    "push with the proof of a round to come": Bad(
        kind=Kind.PUSH,
        round=10,
        meta=encode(PushMeta(Generation(1), 1.0, {}, 1, FAR)),
        payload=VALUE,
        expect=Status.BEHIND,
    ),
    "push under an old epoch": Bad(
        kind=Kind.PUSH, epoch=-1, meta=push_meta(), payload=VALUE, expect=Status.FENCED
    ),
    "push under an epoch to come": Bad(
        kind=Kind.PUSH, epoch=1, meta=push_meta(), payload=VALUE, expect=Status.BEHIND
    ),
    "push to a backup": Bad(
        kind=Kind.PUSH, to="backup", meta=push_meta(), payload=VALUE, expect=Status.UNKNOWN
    ),
    # reads
    "pull of garbage": Bad(kind=Kind.PULL, meta=GARBAGE, expect="meta"),
    "pull with a payload": Bad(kind=Kind.PULL, meta=PULL, payload=VALUE, expect="payload_length"),
    "state with a payload": Bad(kind=Kind.STATE, payload=VALUE, expect="payload_length"),
    "pull of a round to come": Bad(
        kind=Kind.PULL,
        meta=encode(PullMeta(FAR)),
        expect=Status.BEHIND,
    ),
    "pull of a round of others": Bad(
        kind=Kind.PULL,
        meta=encode(PullMeta(Commit(Round(2), Generation(1), (STRANGER,)))),
        expect=Status.BEHIND,
    ),
    "pull of pushes that are not here": Bad(
        kind=Kind.PULL, meta=encode(PullMeta(None, {STRANGER: Seq(1)})), expect=Status.BEHIND
    ),
    "state of a round to come": Bad(
        kind=Kind.STATE, meta=encode(PullMeta(FAR)), expect=Status.BEHIND
    ),
    "state of garbage": Bad(kind=Kind.STATE, meta=GARBAGE, expect="meta"),
    "status of a round to come": Bad(
        kind=Kind.STATUS, meta=encode(PullMeta(FAR)), expect=Status.BEHIND
    ),
    "status of nothing": Bad(kind=Kind.STATUS, expect="meta"),
    # the ledger
    "a command of garbage": Bad(kind=Kind.LEDGER, block=LEDGER, meta=GARBAGE, expect="meta"),
    "a command of nothing": Bad(kind=Kind.LEDGER, block=LEDGER, expect="meta"),
    "a vote for another worker": Bad(
        kind=Kind.LEDGER,
        block=LEDGER,
        meta=command(Vote(WorkerId(7), Round(2), Generation(1))),
        expect="worker",
    ),
    "a list of the living": Bad(
        kind=Kind.LEDGER, block=LEDGER, meta=command(Observe((), 1 << 40)), expect="worker"
    ),
    "an attendance for another worker": Bad(
        kind=Kind.LEDGER,
        block=LEDGER,
        meta=command(Attend(WorkerId(7), Generation(1))),
        expect="worker",
    ),
    "an attendance of no member": Bad(
        kind=Kind.LEDGER,
        block=LEDGER,
        meta=command(Attend(STRANGER, Generation(1))),
        expect=Status.OK,
    ),
    "an inspection of no member": Bad(
        kind=Kind.LEDGER, block=LEDGER, meta=command(Inspect(STRANGER)), expect=Status.OK
    ),
    "a vote of no member": Bad(kind=Kind.LEDGER, block=LEDGER, meta=VOTE, expect=Status.OK),
    "data without samples": Bad(
        kind=Kind.LEDGER,
        block=LEDGER,
        meta=command(Register(STRANGER, DataSpec(0, 1, 1, 0))),
        expect=Status.OK,
    ),
    # values
    "a first value after the first round": Bad(
        kind=Kind.INIT, meta=encode(state()), payload=VALUE, expect=Status.CONFLICT
    ),
    "a first value of nothing": Bad(kind=Kind.INIT, meta=encode(state()), expect="payload_length"),
    "a first value of garbage": Bad(kind=Kind.INIT, meta=GARBAGE, payload=VALUE, expect="meta"),
    "a first value that is too much": Bad(
        kind=Kind.INIT,
        meta=encode(state()),
        payload=bytes(MAX_STATE_FACTOR * BLOCK_BYTES + (64 << 10) + 1),
        expect="payload_length",
    ),
}
