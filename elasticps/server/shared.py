"""A worker's regions as the shard server sees them: gradients to read, values to write there.

What is read there is the worker's, and may change as soon as it was promised to stay: see decision
18 for what may be kept of it, and how long.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from elasticps.errors import WireError
from elasticps.wire.connection import Connection
from elasticps.wire.messages import Place, RegionsOffer, RegionsShown
from elasticps.wire.region_socket import RegionSocket
from elasticps.wire.regions import ALIGNMENT, Mapping, map_foreign
from elasticps.wire.tallies import Traffic

ROOM_BYTES = 1 << 20
"""What a region may have beyond the job's parameters, each aligned."""
MAX_PIECES = 1 << 18
"""Remembered between two steps: for more blocks than that they are cut anew."""


class SharedRegions:
    """Those of one connection; none until its worker has shown them."""

    def __init__(self, passing: RegionSocket | None) -> None:
        self._passing = passing
        self._traffic = passing.traffic if passing else Traffic()
        self._token = b""
        self._most = 0
        self._gradients: dict[int, Mapping] = {}
        self._values: dict[int, Mapping] = {}
        self._pieces: dict[Place, torch.Tensor] = {}

    def offer(self, conn: Connection, block_bytes: Sequence[int]) -> RegionsOffer | None:
        """How the worker can show its regions for blocks of these sizes; None where it cannot.

        Raises WireError for a caller that cannot be on this machine.
        """
        if conn.where.transport != "unix":
            raise WireError(
                "regions are asked for over the network", field="kind", limit="a Unix socket"
            )
        if self._passing is None or not self._passing.is_open:
            return None
        self.close()
        self._most = sum(block_bytes) + ALIGNMENT * len(block_bytes) + ROOM_BYTES
        self._token = self._passing.expect(conn.peer_process(), self._take)
        return RegionsOffer(self._passing.path, self._token)

    def _take(self, shown: RegionsShown, descriptors: Sequence[int]) -> None:
        numbers = [number for number in (shown.gradients, shown.values) if number]
        if len(numbers) != len(descriptors) or len(set(numbers)) != len(numbers):
            raise WireError(
                f"{len(descriptors)} descriptors for {len(numbers)} regions", field="region"
            )
        for number, descriptor in zip(numbers, descriptors, strict=True):
            is_values = number == shown.values
            known = self._values if is_values else self._gradients
            known[number] = map_foreign(descriptor, writable=is_values, most=self._most)

    def gradient(self, place: Place, dtype: torch.dtype | None) -> torch.Tensor:
        """The bytes there, not to be written to. Raises WireError for a place that is none."""
        self._traffic.received += place.nbytes
        return self._piece(self._gradients, place, dtype)

    def value(self, place: Place, dtype: torch.dtype) -> torch.Tensor:
        """Memory there to write a value to. Raises WireError for a place that is none."""
        self._traffic.sent += place.nbytes
        return self._piece(self._values, place, dtype)

    def _piece(
        self, known: dict[int, Mapping], place: Place, dtype: torch.dtype | None
    ) -> torch.Tensor:
        found = self._pieces.get(place)
        if found is None:
            if len(self._pieces) >= MAX_PIECES:
                self._pieces.clear()
            found = self._pieces[place] = _cut(known, place, dtype)
        return found

    def close(self) -> None:
        """Know of no region any more; what still waits with a piece of one keeps that alive."""
        if self._passing is not None:
            self._passing.forget(self._token)
        self._gradients, self._values, self._pieces = {}, {}, {}


def _cut(known: dict[int, Mapping], place: Place, dtype: torch.dtype | None) -> torch.Tensor:
    region = known.get(place.region)
    if region is None:
        raise WireError(f"region {place.region} is not known here", field="region")
    width = dtype.itemsize if dtype else 1
    if place.offset < 0 or place.nbytes < 0 or place.offset + place.nbytes > region.nbytes:
        raise WireError(
            f"{place.nbytes} bytes at {place.offset} of region {place.region}",
            field="offset",
            limit=f"{region.nbytes} bytes",
        )
    if place.offset % width or place.nbytes % width:
        raise WireError(
            f"{place.nbytes} bytes at {place.offset} are not whole elements",
            field="offset",
            limit=f"multiples of {width}",
        )
    return region.tensor[place.offset : place.offset + place.nbytes]
