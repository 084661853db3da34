"""Roles, epochs, promises and durability of one replicated block."""

from __future__ import annotations

from dataclasses import replace

import pytest

from elasticps.core.ids import BlockId, PlanEpoch, ServerId
from elasticps.core.plan import Entry
from elasticps.core.replication import (
    Answer,
    CaughtUp,
    Check,
    Free,
    Replication,
    Role,
    Snapshot,
    Stop,
)

A, B, C, D = (ServerId(f"{name}/1") for name in "abcd")


def plan(
    epoch: int,
    primary: ServerId,
    in_sync: tuple[ServerId, ...] = (),
    learners: tuple[ServerId, ...] = (),
    *,
    fresh: bool = False,
) -> Entry:
    return Entry(
        block=BlockId(1),
        primary=primary,
        in_sync=in_sync,
        learners=learners,
        epoch=PlanEpoch(epoch),
        fresh=fresh,
    )


def primary_of(entry: Entry, *, ops: int = 0, acked: tuple[ServerId, ...] = ()) -> Replication:
    """A primary that has led since the block's creation, with ``ops`` that ``acked`` hold too."""
    replication = Replication(me=entry.primary)
    replication.adopt(plan(1, entry.primary, fresh=True))
    replication.adopt(entry)
    for _ in range(ops):
        replication.record(7)
    for peer in acked:
        replication.acked(peer, replication.version)
    return replication


def backup_of(entry: Entry, me: ServerId, *, version: int) -> Replication:
    replication = Replication(me=me)
    replication.adopt(entry)
    replication.install(version, history=version)
    return replication


# -- roles --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("me", "role"),
    [(A, Role.PRIMARY), (B, Role.IN_SYNC), (C, Role.LEARNER), (D, Role.NONE)],
)
def test_the_plan_gives_each_server_its_role(me: ServerId, role: Role) -> None:
    replication = Replication(me=me)
    replication.adopt(plan(5, A, (B,), (C,), fresh=True))
    assert replication.role is role


def test_a_primary_streams_to_every_peer_of_the_plan() -> None:
    replication = Replication(me=A)
    actions = replication.adopt(plan(5, A, (B,), (C,), fresh=True))
    assert actions == [Snapshot(B), Snapshot(C)]
    assert replication.adopt(plan(6, A, (B,), (D,))) == [Stop(C), Snapshot(D)]
    assert replication.adopt(plan(7, B, (A,))) == [Stop(B), Stop(D)]


@pytest.mark.parametrize("epoch", [3, 5])
def test_an_older_plan_changes_nothing(epoch: int) -> None:
    replication = primary_of(plan(5, A, (B,)))
    assert replication.adopt(plan(epoch, B)) == []
    assert (replication.role, replication.epoch) == (Role.PRIMARY, 5)


def test_a_server_without_state_does_not_lead_a_block_that_is_not_new() -> None:
    replication = Replication(me=A)
    assert replication.adopt(plan(5, A)) == [Free()]
    assert replication.check(PlanEpoch(5)) is Check.UNKNOWN


def test_a_server_that_lost_its_place_does_not_lead_with_what_it_once_held() -> None:
    replication = primary_of(plan(5, A), ops=3)
    assert replication.adopt(plan(6, B)) == [Free()]
    replication.adopt(plan(7, B, (A,)))
    assert replication.adopt(plan(8, A)) == [Free()]
    assert replication.role is Role.NONE


@pytest.mark.parametrize(
    ("role", "epoch", "check"),
    [
        (Role.PRIMARY, 4, Check.FENCED),
        (Role.PRIMARY, 5, Check.OK),
        (Role.PRIMARY, 6, Check.BEHIND),
        (Role.IN_SYNC, 4, Check.FENCED),
        (Role.IN_SYNC, 5, Check.UNKNOWN),
        (Role.IN_SYNC, 6, Check.BEHIND),
        (Role.LEARNER, 5, Check.UNKNOWN),
        (Role.NONE, 5, Check.UNKNOWN),
    ],
)
def test_a_client_is_served_by_the_primary_under_its_own_epoch_alone(
    role: Role, epoch: int, check: Check
) -> None:
    me = {Role.PRIMARY: A, Role.IN_SYNC: B, Role.LEARNER: C, Role.NONE: D}[role]
    replication = Replication(me=me)
    replication.adopt(plan(5, A, (B,), (C,), fresh=True))
    assert replication.role is role
    assert replication.check(PlanEpoch(epoch)) is check


# -- durability ---------------------------------------------------------------------------------


def test_an_answer_waits_for_every_in_sync_backup_and_no_learner() -> None:
    replication = primary_of(plan(5, A, (B, C), (D,)), ops=2)
    assert replication.answer_when_durable("pull") == []
    assert replication.acked(B, 2) == []
    assert replication.acked(C, 1) == []
    assert replication.acked(C, 2) == [Answer("pull", Check.OK)]
    assert replication.acked(C, 2) == []
    assert replication.acked(C, 1) == []
    assert replication.durable == 2


def test_alone_a_primary_answers_at_once() -> None:
    replication = primary_of(plan(5, A), ops=2)
    assert replication.answer_when_durable("pull") == [Answer("pull", Check.OK)]


def test_a_plan_without_the_dead_backup_releases_what_waited_for_it() -> None:
    replication = primary_of(plan(5, A, (B, C)), ops=1)
    replication.answer_when_durable("pull")
    replication.acked(C, 1)
    assert replication.adopt(plan(6, A, (C,))) == [Stop(B), Answer("pull", Check.OK)]


def test_a_deposed_primary_answers_fenced_for_what_is_not_durable() -> None:
    replication = primary_of(plan(5, A, (B,)), ops=1)
    replication.answer_when_durable("pull")
    assert replication.adopt(plan(6, B, (A,))) == [Stop(B), Answer("pull", Check.FENCED)]
    assert replication.acked(B, 1) == []
    assert replication.adopt(plan(7, A, (B,))) == [Snapshot(B)]
    assert replication.acked(B, 1) == []


def test_a_primary_that_missed_anothers_term_knows_nothing_of_its_peers() -> None:
    """C was dropped and came back empty while B led, which A never saw: its ops are not C's."""
    first = replace(plan(5, A, (B,), (C,)), since=PlanEpoch(1))
    replication = Replication(me=A)
    replication.adopt(replace(plan(1, A, fresh=True), since=PlanEpoch(1)))
    replication.adopt(first)
    replication.record(7)
    replication.acked(C, 1)
    replication.answer_when_durable("push")
    later = replace(plan(8, A, (C,)), since=PlanEpoch(8))
    assert replication.adopt(later) == [
        Stop(B), Stop(C), Answer("push", Check.FENCED), Snapshot(C)
    ]  # fmt: skip
    assert replication.answer_when_durable("again") == []


def test_a_backup_that_missed_anothers_term_takes_the_snapshot_of_the_new_one() -> None:
    replication = backup_of(replace(plan(5, A, (B,)), since=PlanEpoch(1)), B, version=9)
    replication.adopt(replace(plan(8, A, (B,)), since=PlanEpoch(8)))
    assert replication.check_op(PlanEpoch(8), 8) is Check.CONFLICT
    assert replication.check_snapshot(PlanEpoch(8), 7) is Check.OK


def test_a_broken_stream_counts_for_nothing_until_its_snapshot_is_in() -> None:
    replication = primary_of(plan(5, A, (B,)), ops=2, acked=(B,))
    replication.restarted(B)
    assert replication.answer_when_durable("old") == [Answer("old", Check.OK)]
    replication.record(7)
    assert replication.answer_when_durable("new") == []
    assert replication.acked(B, 2) == []
    assert replication.acked(B, 3) == [Answer("new", Check.OK)]


def test_a_new_primary_waits_for_backups_to_take_its_snapshot() -> None:
    """What it holds beyond the old primary's durable ops is not yet held by the others."""
    replication = backup_of(plan(5, A, (B, C)), B, version=4)
    assert replication.adopt(plan(6, B, (C,))) == [Snapshot(C)]
    assert replication.answer_when_durable("pull") == []
    assert replication.acked(C, 4) == [Answer("pull", Check.OK)]


def primary_that_wants(count: int, entry: Entry) -> Replication:
    replication = Replication(me=entry.primary, min_insync=count)
    replication.adopt(plan(1, entry.primary, fresh=True))
    replication.adopt(entry)
    replication.record(7)
    return replication


def test_nothing_new_is_durable_while_there_are_too_few_replicas() -> None:
    replication = primary_that_wants(2, plan(5, A, (), (B,)))
    assert replication.answer_when_durable("push") == []
    assert replication.acked(B, 1) == [CaughtUp(B, PlanEpoch(5)), Answer("push", Check.OK)]


def test_what_was_durable_stays_so_when_replicas_die() -> None:
    replication = primary_that_wants(2, plan(5, A, (B,)))
    replication.acked(B, 1)
    replication.adopt(plan(6, A))
    assert replication.answer_when_durable("read") == [Answer("read", Check.OK)]
    replication.record(7)
    assert replication.answer_when_durable("push") == []


# -- promises -----------------------------------------------------------------------------------


def test_a_learner_that_has_caught_up_is_waited_for_from_then_on() -> None:
    replication = primary_of(plan(5, A, (), (B,)), ops=2)
    assert replication.answer_when_durable("early") == [Answer("early", Check.OK)]
    assert replication.acked(B, 1) == []
    assert replication.promised_learners == []
    assert replication.acked(B, 2) == [CaughtUp(B, PlanEpoch(5))]
    assert replication.promised_learners == [B]
    replication.record(7)
    assert replication.answer_when_durable("late") == []
    replication.restarted(B)
    assert replication.promised_learners == [B]
    assert replication.acked(B, 3) == [Answer("late", Check.OK)]


def test_a_promoted_learner_is_waited_for_without_a_break() -> None:
    replication = primary_of(plan(5, A, (), (B,)), ops=1, acked=(B,))
    replication.record(7)
    assert replication.adopt(plan(6, A, (B,))) == []
    assert replication.promised_learners == []
    assert replication.answer_when_durable("pull") == []
    assert replication.acked(B, 2) == [Answer("pull", Check.OK)]


@pytest.mark.parametrize("before", [plan(5, A, (), (B,)), plan(5, A, (B,))])
@pytest.mark.parametrize("caught_up", [False, True])
def test_a_learner_of_a_new_plan_is_promised_only_after_a_new_snapshot(
    before: Entry, caught_up: bool
) -> None:
    """A plan that went unseen may have dropped it, and with that freed what it held."""
    replication = primary_of(before, ops=1, acked=(B,) if caught_up else ())
    assert replication.adopt(plan(9, A, (), (B,))) == [Stop(B), Snapshot(B)]
    assert replication.promised_learners == []
    assert replication.acked(B, 1) == [CaughtUp(B, PlanEpoch(9))]


def test_an_ack_of_one_that_is_no_peer_any_more_changes_nothing() -> None:
    replication = primary_of(plan(5, A, (B,)), ops=1)
    replication.adopt(plan(6, A))
    assert replication.acked(B, 1) == []
    replication.restarted(B)
    assert replication.durable == 1


# -- a backup's side ----------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("epoch", "version", "check"),
    [
        (4, 4, Check.FENCED),
        (6, 4, Check.BEHIND),
        (5, 3, Check.OK),
        (5, 4, Check.OK),
        (5, 5, Check.CONFLICT),
    ],
)
def test_a_backup_takes_the_next_op_of_its_primary_alone(
    epoch: int, version: int, check: Check
) -> None:
    replication = backup_of(plan(5, A, (B,)), B, version=3)
    assert replication.check_op(PlanEpoch(epoch), version) is check


def test_a_backup_takes_no_op_before_a_snapshot() -> None:
    replication = Replication(me=B)
    replication.adopt(plan(5, A, (B,)))
    assert replication.check_op(PlanEpoch(5), 1) is Check.CONFLICT
    assert replication.check_snapshot(PlanEpoch(5), 1) is Check.OK


@pytest.mark.parametrize("between", [plan(6, C, (B,)), plan(6, B), plan(6, A)])
def test_a_backup_follows_a_primary_again_only_from_a_new_snapshot(between: Entry) -> None:
    """Equal versions may differ after another has led; the primary may not have seen that plan."""
    replication = backup_of(plan(5, A, (B,)), B, version=3)
    replication.adopt(between)
    replication.adopt(plan(7, A, (B,)))
    assert replication.check_op(PlanEpoch(7), 4) is Check.CONFLICT
    replication.install(3, history=3)
    assert replication.check_op(PlanEpoch(7), 4) is Check.OK


def test_a_backup_goes_on_with_its_primary_under_the_next_plan() -> None:
    replication = backup_of(plan(5, A, (), (B,)), B, version=3)
    replication.adopt(plan(6, A, (B,)))
    assert replication.check_op(PlanEpoch(6), 4) is Check.OK


@pytest.mark.parametrize("me", [A, D])
def test_snapshots_and_ops_are_for_backups_alone(me: ServerId) -> None:
    replication = Replication(me=me)
    replication.adopt(plan(5, A, (B,), fresh=True))
    assert replication.check_snapshot(PlanEpoch(5), 1) is Check.UNKNOWN
    assert replication.check_op(PlanEpoch(5), 1) is Check.UNKNOWN


@pytest.mark.parametrize("digests", [(2, 1), (3, 2), (1, 3)])
def test_history_tells_apart_equal_versions_of_other_ops(digests: tuple[int, int]) -> None:
    one, other = primary_of(plan(5, A)), primary_of(plan(5, A))
    for digest, differing in zip((1, 2), digests, strict=True):
        assert one.record(digest) == other.record(differing)
    assert one.history != other.history
    follower = Replication(me=B)
    for digest in (1, 2):
        follower.follow(digest)
    assert (follower.version, follower.history) == (one.version, one.history)


def test_a_proof_is_taken_of_the_present_primary_once_its_snapshot_is_here() -> None:
    entry = plan(5, A, in_sync=(B,))
    backup = Replication(me=B)
    backup.adopt(entry)
    assert backup.check_proof(PlanEpoch(5)) is Check.CONFLICT
    backup.install(3, history=3)
    assert backup.check_proof(PlanEpoch(5)) is Check.OK
    assert backup.check_proof(PlanEpoch(4)) is Check.FENCED
    assert backup.check_proof(PlanEpoch(6)) is Check.BEHIND
    assert primary_of(entry).check_proof(PlanEpoch(5)) is Check.UNKNOWN
    backup.adopt(plan(6, C, in_sync=(B,)))
    assert backup.check_proof(PlanEpoch(6)) is Check.CONFLICT
