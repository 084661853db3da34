"""Passes: what a node's signature is good for, and what it is not."""

from __future__ import annotations

import datetime
import time
from pathlib import Path

import msgspec
import pytest

from elasticps.core.ids import JobKey, NodeId
from elasticps.errors import AccessDenied
from elasticps.security import authority as making
from elasticps.security import passes
from elasticps.security.passes import PassIssuer, PassVerifier
from tests.support.nodes import Authority

JOB = JobKey(7)


class _Yesterday(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
        return super().now(tz) - datetime.timedelta(days=2)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def verifier(authority: Authority) -> PassVerifier:
    return PassVerifier(authority.ca.read_bytes())


def issuer(authority: Authority, node: str = "n1", said: str | None = None) -> PassIssuer:
    return PassIssuer(authority.node(node), "lab", NodeId(said or node))


def test_a_pass_is_for_its_caller_its_job_and_its_cluster(authority, verifier):
    token = issuer(authority).issue("41", JOB)
    found = verifier.check(token, cluster="lab", caller="41")
    assert (found.job, found.node) == (JOB, "n1")
    for cluster, caller in (("lab", "42"), ("other", "41")):
        with pytest.raises(AccessDenied, match="the pass of 41 in cluster lab"):
            verifier.check(token, cluster=cluster, caller=caller)


def test_a_pass_is_over_after_minutes(authority, verifier, monkeypatch):
    token = issuer(authority).issue("41", JOB)
    later = time.time() + passes.VALID_S
    monkeypatch.setattr(time, "time", lambda: later)
    with pytest.raises(AccessDenied, match="the pass is over"):
        verifier.check(token, cluster="lab", caller="41")


def test_another_authority_vouches_for_nobody_here(tmp_path, verifier):
    token = issuer(Authority(tmp_path / "other")).issue("41", JOB)
    with pytest.raises(AccessDenied, match="a stranger to this cluster"):
        verifier.check(token, cluster="lab", caller="41")


def test_a_node_cannot_speak_for_another(authority, verifier):
    token = issuer(authority, "n1", said="n2").issue("41", JOB)
    with pytest.raises(AccessDenied, match="signed by n1"):
        verifier.check(token, cluster="lab", caller="41")


@pytest.mark.parametrize("at", range(3))
def test_a_changed_pass_is_none(authority, verifier, at):
    parts = msgspec.msgpack.decode(issuer(authority).issue("41", JOB))
    parts[at] = parts[at][:-1] + bytes([parts[at][-1] ^ 1])
    with pytest.raises(AccessDenied):
        verifier.check(msgspec.msgpack.encode(parts), cluster="lab", caller="41")


def test_a_pass_of_another_job_is_not_made_of_two(authority, verifier):
    made = issuer(authority)
    mine, theirs = (msgspec.msgpack.decode(made.issue("41", JobKey(job))) for job in (7, 8))
    with pytest.raises(AccessDenied):
        verifier.check(
            msgspec.msgpack.encode([theirs[0], mine[1], mine[2]]), cluster="lab", caller="41"
        )


@pytest.mark.parametrize(
    "token", [b"", b"\x93", b"nonsense" * 10_000, msgspec.msgpack.encode([b"", b"", b""])]
)
def test_nonsense_is_no_pass(verifier, token):
    with pytest.raises(AccessDenied):
        verifier.check(token, cluster="lab", caller="41")


def test_an_expired_certificate_signs_nothing(authority, verifier, monkeypatch):
    monkeypatch.setattr(making, "BACKDATED", datetime.timedelta(days=9))
    monkeypatch.setattr(making.datetime, "datetime", _Yesterday)
    files = authority.node("n1", days=1)
    monkeypatch.undo()
    with pytest.raises(AccessDenied, match="expired certificate"):
        verifier.check(
            PassIssuer(files, "lab", NodeId("n1")).issue("41", JOB), cluster="lab", caller="41"
        )
