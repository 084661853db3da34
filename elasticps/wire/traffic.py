"""The bytes of one process's connections, by transport."""

from __future__ import annotations

from elasticps.wire.address import Address
from elasticps.wire.tallies import Traffic

TRANSPORTS = ("shm", "unix", "tcp", "tls")
"""``shm`` are bytes that lie in a region of memory, with no frame that carries them. ``tls`` is TCP
with TLS; its bytes are counted before they are encrypted."""


class TrafficBy:
    """One ``Traffic`` for each transport; a connection adds to that of its own."""

    def __init__(self) -> None:
        self.by_transport = {transport: Traffic() for transport in TRANSPORTS}

    def of(self, address: Address, *, tls: bool = False) -> Traffic:
        return self.by_transport["tls" if tls and address.transport == "tcp" else address.transport]
