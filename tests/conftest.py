"""What every test can rely on, however the tests were started."""

from __future__ import annotations

import os
import signal

import pytest


def pytest_configure() -> None:
    """Undo what a background job of a shell inherits: ignored keyboard signals.

    Programs under test are sent them, and a signal that is ignored at exec stays ignored.
    """
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_sessionfinish(session: pytest.Session) -> None:
    """A skip fails CI, which installs what the tests need: nothing goes unrun there unnoticed."""
    reporter = session.config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("ELASTICPS_CI") and reporter and reporter.stats.get("skipped"):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
