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


GLOO = "gloo"


class PeerTraffic(TrafficBy):
    """What a worker exchanges with other workers; ``gloo`` are sums over all of them.

    Gloo does not tell what it moves: that is what its ring moves, by its algorithm.
    """

    def __init__(self) -> None:
        super().__init__()
        self.by_transport[GLOO] = Traffic()

    def summed(self, nbytes: int, world: int) -> None:
        """A tensor of ``nbytes`` was summed over ``world`` workers.

        A ring passes each of ``world`` parts on ``world - 1`` times to add it up, and as often
        again to spread the sum (Patarasuk and Yuan 2009, section 4).
        """
        moved = 2 * nbytes * (world - 1) // world
        gloo = self.by_transport[GLOO]
        gloo.sent += moved
        gloo.received += moved

    @property
    def sent(self) -> dict[str, int]:
        """Bytes by transport, of those that have carried any."""
        return {name: each.sent for name, each in self.by_transport.items() if each.sent}

    @property
    def received(self) -> dict[str, int]:
        return {name: each.received for name, each in self.by_transport.items() if each.received}
