"""Many blocks in one frame: what a GROUP says of each, where its bytes lie, how it is answered.

It asks what single frames would ask, in this order, and is answered when all of them are; or at
once where one of them is refused, for what the others wait for may wait for that one. Large values
that are sent go before the answer, each in a frame of its own as soon as it is there (FLAG_PART).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import msgspec

from elasticps.core.ids import BlockId, PlanEpoch
from elasticps.errors import WireError
from elasticps.wire.frame import Status
from elasticps.wire.messages import Place, PullMeta, PushMeta

SMALL_BYTES = 64 * 1024
"""Up to this size a block's bytes cost less than a frame of its own does."""
MAX_PIECES = 1024
"""Few enough that a server turns to others soon."""
MAX_GROUP_BYTES = 2 << 20
"""Of small blocks, or small ops, in one payload."""
MAX_LANDED_BYTES = 160 << 20
"""Of a payload with large blocks in it, which lands in several places."""
ALIGNMENT = 16
"""Of each piece within the payload, so that it can be read as numbers where it lies."""
EMPTY = -1
"""In the place of a size: a push without gradient."""
NOT_YET = Status.BEHIND
"""In a group that one refusal ended: nothing is known of this block. Ask again."""


class Piece(msgspec.Struct, frozen=True, array_like=True, gc=False):
    """One block of a group. ``nbytes``: of the gradient, EMPTY for none, or of the value's place;
    ``offset``: in the sender's region, where the group names one."""

    block: BlockId
    plan_epoch: PlanEpoch
    nbytes: int = 0
    offset: int = 0

    def place_in(self, region: int) -> Place:
        return Place(region, self.offset, self.nbytes)


class GroupMeta(msgspec.Struct, frozen=True, array_like=True):
    """A push of each piece, or a pull: just one is given, and has no place of its own.

    ``region``: where the gradients lie, or the values are written; 0: in the payload, in order and
    aligned. ``kept``: as in a ``Place``.
    """

    pieces: tuple[Piece, ...]
    push: PushMeta | None = None
    pull: PullMeta | None = None
    region: int = 0
    kept: bool = False


class GroupReply(msgspec.Struct, frozen=True, array_like=True):
    """A status for each piece, and what an answer's meta says, by the piece's index. The payload
    has the values of a pull that went to no place, one after the other, of those that are OK."""

    statuses: bytes
    metas: dict[int, bytes] = {}


def check_group(group: GroupMeta, payload_length: int) -> None:
    """Raise WireError for a group that breaks a limit, or whose pieces are not its payload."""
    if (group.push is None) == (group.pull is None):
        raise WireError("a group of pushes and pulls, or of neither", field="push")
    if (group.push or group.pull).place is not None:  # type: ignore[union-attr]
        raise WireError("a group's places are its pieces'", field="place")
    if not 0 < len(group.pieces) <= MAX_PIECES:
        raise WireError(
            f"a group of {len(group.pieces)} blocks", field="pieces", limit=f"1 to {MAX_PIECES}"
        )
    if any(piece.nbytes < EMPTY for piece in group.pieces):
        raise WireError("a piece of negative size", field="nbytes", limit="0")
    carries = group.push is not None and not group.region
    if payload_length != (payload_size(group.pieces) if carries else 0):
        raise WireError(f"{payload_length} bytes for a group's pieces", field="payload_length")
    if payload_length > MAX_LANDED_BYTES:
        raise WireError(
            f"a group of {payload_length} bytes",
            field="payload_length",
            limit=f"{MAX_LANDED_BYTES} bytes",
        )


def offsets(pieces: Sequence[Piece]) -> Iterator[int]:
    """Where each piece begins in the payload."""
    start = 0
    for piece in pieces:
        yield start
        start += aligned(piece.nbytes)


def payload_size(pieces: Sequence[Piece]) -> int:
    return sum(aligned(piece.nbytes) for piece in pieces)


def aligned(nbytes: int) -> int:
    """The room that a piece of so many bytes takes; EMPTY takes none."""
    return -(-max(nbytes, 0) // ALIGNMENT) * ALIGNMENT
