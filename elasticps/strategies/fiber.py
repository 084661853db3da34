"""A plain function that can stand still in its middle: it has a thread of its own for that."""

from __future__ import annotations

import threading
from collections.abc import Callable

FIBERS = "elasticps-fiber-"
"""What the names of their threads begin with."""


class Abandoned(BaseException):
    """Raised in a fiber whose call will not be gone on with. Not to be caught."""


class Fiber:
    """A thread that runs calls, one at a time, and only while its owner waits for it.

    So of a fiber and its owner one runs and one stands still: what they share needs no lock. The
    thread is kept between calls, for what a thread keeps (an OpenMP pool) costs time to make.
    """

    def __init__(self, name: str) -> None:
        self.is_under_way = False
        self._name = name
        self._thread: threading.Thread | None = None
        self._go_on = threading.Semaphore(0)
        self._stands = threading.Semaphore(0)
        self._call: Callable[[], None] | None = None
        self._error: BaseException | None = None
        self._closed = False

    # -- its owner's side -----------------------------------------------------------------------

    def begin(self, call: Callable[[], None]) -> None:
        """Have ``call`` ready: ``resume`` lets it run."""
        assert not self.is_under_way
        self._call, self.is_under_way = call, True

    def resume(self) -> None:
        """Let the call go on until it stands still or is over. Raises what it raised."""
        if self._thread is None:
            self._thread = threading.Thread(
                target=self._live, name=FIBERS + self._name, daemon=True
            )
            self._thread.start()
        self._go_on.release()
        self._stands.acquire()
        if self._error is not None:
            error, self._error = self._error, None
            raise error

    def close(self) -> None:
        """End the thread: a call under way gets Abandoned where it stands. It is not waited for."""
        self._closed = True
        self._go_on.release()

    # -- its own side ---------------------------------------------------------------------------

    def stand(self) -> None:
        """Called in the call itself: let the owner go on, until it resumes this."""
        self._stands.release()
        self._go_on.acquire()
        if self._closed:
            raise Abandoned

    def _live(self) -> None:
        while True:
            self._go_on.acquire()
            if self._closed:
                return
            call, self._call = self._call, None
            assert call is not None
            try:
                call()
            except Abandoned:
                return
            except BaseException as error:  # raised where the owner waits
                self._error = error
            del call
            self.is_under_way = False
            self._stands.release()
