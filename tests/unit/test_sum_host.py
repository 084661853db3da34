"""Where gloo may listen: its sums are not encrypted."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest

from elasticps.core.ids import JobKey, WorkerId
from elasticps.errors import UsageError
from elasticps.wire.control_messages import Access
from elasticps.wire.machine import this_machine
from elasticps.wire.messages import PeerNote
from elasticps.worker.peers import Peers, Place

HOST = "10.0.0.7"


def peers(*machines: str, access: Access | None) -> Peers:
    """With a member on each of ``machines``."""
    nobody = cast("Any", None)
    current = (lambda: access) if access else None
    made = Peers(nobody, "lab", JobKey(1), WorkerId(1), Place(HOST, Path("/")), current)
    made._notes = {
        WorkerId(number): PeerNote("", "", machine) for number, machine in enumerate(machines)
    }
    return made


def access(*, plain: bool) -> Access:
    return Access(token=b"", ca=b"", plain_all_reduce=plain)


def test_on_one_machine_sums_stay_there():
    here = this_machine()
    assert peers(here, here, access=access(plain=False)).sum_host() == "127.0.0.1"


def test_on_several_machines_they_cross_the_network_only_where_that_is_allowed():
    machines = (this_machine(), "another")
    with pytest.raises(UsageError, match="cross the network readable") as caught:
        peers(*machines, access=access(plain=False)).sum_host()
    assert "--allow-plain-all-reduce" in str(caught.value.hint)
    assert peers(*machines, access=access(plain=True)).sum_host() == HOST


def test_without_certificates_nothing_is_promised():
    assert peers(this_machine(), "another", access=None).sum_host() == HOST
