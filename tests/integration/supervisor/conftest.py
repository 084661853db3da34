"""What tests of child processes are held to."""

from __future__ import annotations

import threading

import pytest
import uvloop

from tests.support.processes import open_fds, wait_until, zombie_children


@pytest.fixture(scope="module")
def first_uvloop():
    """The first loop opens a pipe for the rest of the process's life."""
    uvloop.new_event_loop().close()


@pytest.fixture(autouse=True)
def nothing_leaks(first_uvloop):
    """No process, descriptor or thread outlives a test."""
    fds, threads = open_fds(), threading.active_count()
    yield
    wait_until(lambda: threading.active_count() <= threads)
    wait_until(lambda: open_fds() <= fds)
    assert zombie_children() == []
