"""What every test can rely on, however the tests were started."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """Undo what a background job of a shell inherits: ignored keyboard signals.

    Programs under test are sent them, and a signal that is ignored at exec stays ignored.
    """
    for number in (signal.SIGHUP, signal.SIGQUIT):
        signal.signal(number, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.default_int_handler)
