"""Jobs that a leader has planned already."""

from __future__ import annotations

import pytest

from elasticps.daemon.view import JobView
from tests.unit.leader.led import Led, running


@pytest.fixture
def etcd() -> Led:
    return Led()


@pytest.fixture
def job(etcd: Led) -> JobView:
    """A job of seven blocks and the ledger, one copy of each, that runs on the nodes a and b."""
    return running(etcd, "ab", 7, replicas=1)


@pytest.fixture
def paired(etcd: Led) -> JobView:
    """A job of 23 blocks and the ledger on the nodes a, b and c, two copies of each in sync."""
    job = running(etcd, "abc", 23)
    etcd.move_all(job)
    return job
