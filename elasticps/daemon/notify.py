"""Tells systemd how the daemon is doing: sd_notify over the NOTIFY_SOCKET datagram socket."""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Mapping

logger = logging.getLogger(__name__)

SEND_TIMEOUT_S = 0.25
MAX_STATUS_CHARS = 500  # systemd ignores datagrams beyond 4 KiB


class Notifier:
    """Speaks to the service manager; does nothing where there is none, and never raises OSError.

    ``watchdog_period_s``: call ``watchdog`` this often, from the loop after a self-check; None
    where no watchdog waits for this process.
    """

    def __init__(self, address: str | None, *, watchdog_period_s: float | None = None) -> None:
        self._address = address
        self.watchdog_period_s = watchdog_period_s
        self._failing = False

    @classmethod
    def from_environment(cls, environment: Mapping[str, str] = os.environ) -> Notifier:
        """Read NOTIFY_SOCKET, WATCHDOG_USEC and WATCHDOG_PID as systemd sets them."""
        address = environment.get("NOTIFY_SOCKET") or None
        if address is not None and address[0] not in "/@":
            logger.warning("NOTIFY_SOCKET=%s is neither a path nor abstract: ignored", address)
            address = None
        return cls(address, watchdog_period_s=_watchdog_period_s(environment))

    def ready(self, status: str) -> None:
        """Startup, or a reload, is complete."""
        self._send("READY=1", _status(status))

    def status(self, text: str) -> None:
        """One line for ``systemctl status``; a longer text is cut."""
        self._send(_status(text))

    def stopping(self) -> None:
        self._send("STOPPING=1")

    def reloading(self) -> None:
        """A reload begins; call ``ready`` at its end."""
        self._send("RELOADING=1", f"MONOTONIC_USEC={time.monotonic_ns() // 1000}")

    def watchdog(self) -> None:
        """Put off the watchdog for another period."""
        self._send("WATCHDOG=1")

    def _send(self, *assignments: str) -> None:
        if self._address is None:
            return
        address = self._address
        if address.startswith("@"):
            address = "\0" + address[1:]
        message = "\n".join(assignments).encode("utf-8", "replace")
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as channel:
                channel.settimeout(SEND_TIMEOUT_S)
                channel.sendto(message, address)
        except OSError as error:
            if not self._failing:
                logger.warning("systemd can't be told at %s: %s", self._address, error)
            self._failing = True
        else:
            self._failing = False


def _status(text: str) -> str:
    return "STATUS=" + " ".join(text.split())[:MAX_STATUS_CHARS]


def _watchdog_period_s(environment: Mapping[str, str]) -> float | None:
    """Half of what systemd allows, so that one late turn of the loop is forgiven."""
    allowed_usec = environment.get("WATCHDOG_USEC", "")
    if environment.get("WATCHDOG_PID", str(os.getpid())) != str(os.getpid()):
        return None
    if not allowed_usec.isascii() or not allowed_usec.isdigit() or int(allowed_usec) == 0:
        return None
    return int(allowed_usec) / 2_000_000
