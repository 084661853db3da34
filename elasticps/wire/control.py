"""The control channel between a daemon and its children: typed messages over one connection."""

from __future__ import annotations

from collections.abc import Callable

from elasticps.errors import WireError
from elasticps.wire.connection import Connection
from elasticps.wire.control_messages import Control, decode_control
from elasticps.wire.frame import Header, Kind
from elasticps.wire.messages import encode


class ControlEnd:
    """One end of a control channel (a ``wire.connection.Dispatcher``)."""

    def __init__(
        self,
        on_message: Callable[[Connection, Control], None],
        on_closed: Callable[[Connection], None],
    ) -> None:
        self._on_message = on_message
        self._on_closed = on_closed

    def destination(self, conn: Connection, header: Header, meta: bytes) -> memoryview | None:
        raise WireError("a control message has no payload", field="payload_length", limit="0")

    def received(
        self, conn: Connection, header: Header, meta: bytes, payload: memoryview | None
    ) -> None:
        if header.kind is not Kind.CONTROL:
            raise WireError(f"{header.kind.name} on the control channel", field="kind")
        self._on_message(conn, decode_control(meta))

    def closed(self, conn: Connection) -> None:
        self._on_closed(conn)


def tell(conn: Connection, message: Control) -> None:
    """Send one control message. Raises PeerUnavailable when the channel is closed."""
    conn.send(Header(Kind.CONTROL), encode(message))
