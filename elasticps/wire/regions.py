"""Regions: sealed memory of one process (memfd) that others of the machine map, tensors in it.

A region's size is sealed, so that nobody who maps it can be killed by its shrinking; one that
others may only read is sealed against new writable mappings too. Its pages live for as long as
somebody maps them, whoever made them. They are charged to who touches them first.
"""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import weakref
from dataclasses import dataclass

import torch

from elasticps.errors import WireError

ALIGNMENT = 64
"""Bytes to which a parameter's place is aligned: a cache line, and what vector loads like."""

_ADD_SEALS, _GET_SEALS = 1033, 1034  # fcntl has no names for what is newer than it
_SEAL_SHRINK, _SEAL_GROW, _SEAL_FUTURE_WRITE = 2, 4, 16
_SIZE_SEALS = _SEAL_SHRINK | _SEAL_GROW
_NOEXEC_SEAL = 8
_MAP_FIXED = 0x10
_MADV_HUGEPAGE = 14
_FAILED = ctypes.c_void_p(-1).value

_libc = ctypes.CDLL(None, use_errno=True)
_libc.mmap.restype = ctypes.c_void_p
_libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
_libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]


@dataclass(frozen=True, slots=True, eq=False)
class Mapping:
    """A region as this process sees it: ``tensor`` is all of it, as bytes.

    The mapping goes when the last tensor that lies in it does.
    """

    address: int
    tensor: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.tensor.numel()

    def offset_of(self, address: int, nbytes: int) -> int | None:
        """Where in the region these bytes of this process lie; None if not, or not all."""
        offset = address - self.address
        return offset if 0 <= offset <= self.nbytes - nbytes else None


@dataclass(slots=True, eq=False)
class Region:
    """One's own region: the file to pass on, and the mapping to write to."""

    descriptor: int
    mapping: Mapping

    @classmethod
    def make(cls, name: str, nbytes: int, *, others_write: bool) -> Region:
        """A region of zeros. Raises OSError where the system has no memfd, or no room."""
        descriptor = _memfd(name, nbytes)
        try:
            region = cls(descriptor, _mapped(descriptor, nbytes, writable=True))
            _seal(descriptor, others_write=others_write)
        except BaseException:
            os.close(descriptor)
            raise
        return region

    def renew(self, name: str, *, others_write: bool) -> None:
        """Put fresh pages with the same contents in the place of these, at the same addresses.

        Who has mapped the region until now keeps the old ones. Nobody may write meanwhile.
        Raises OSError; the region is as it was then.
        """
        mapping = self.mapping
        descriptor = _memfd(name, mapping.nbytes)
        try:
            _mapped(descriptor, mapping.nbytes, writable=True).tensor.copy_(mapping.tensor)
            _map(descriptor, mapping.nbytes, writable=True, at=mapping.address)
            _seal(descriptor, others_write=others_write)
        except BaseException:
            os.close(descriptor)
            raise
        os.close(self.descriptor)
        self.descriptor = descriptor

    def close(self) -> None:
        """Let go of the file; tensors in the region stay as they are. Idempotent."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1


def map_foreign(descriptor: int, *, writable: bool, most: int) -> Mapping:
    """Map another process's region. Raises WireError for what is none, or is too large."""
    try:
        seals = fcntl.fcntl(descriptor, _GET_SEALS)
        nbytes = os.fstat(descriptor).st_size
    except OSError as error:
        raise WireError(f"not a region: {error.strerror}", field="region") from error
    if seals & _SIZE_SEALS != _SIZE_SEALS:
        raise WireError("the region's size is not sealed", field="seals", limit="shrink and grow")
    if not 0 < nbytes <= most:
        raise WireError(f"a region of {nbytes} bytes", field="region", limit=f"{most} bytes")
    try:
        return _mapped(descriptor, nbytes, writable=writable)
    except OSError as error:
        raise WireError(f"the region cannot be mapped: {error.strerror}", field="region") from error


def _memfd(name: str, nbytes: int) -> int:
    flags = os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING
    try:
        descriptor = os.memfd_create(name, flags | _NOEXEC_SEAL)
    except OSError:  # a kernel before 6.3 does not know that flag
        descriptor = os.memfd_create(name, flags)
    try:
        os.ftruncate(descriptor, nbytes)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _seal(descriptor: int, *, others_write: bool) -> None:
    seals = _SIZE_SEALS | (0 if others_write else _SEAL_FUTURE_WRITE)
    fcntl.fcntl(descriptor, _ADD_SEALS, seals)


def _mapped(descriptor: int, nbytes: int, *, writable: bool) -> Mapping:
    address = _map(descriptor, nbytes, writable=writable)
    memory = (ctypes.c_char * nbytes).from_address(address)
    weakref.finalize(memory, _libc.munmap, address, nbytes)
    return Mapping(address, torch.frombuffer(memory, dtype=torch.uint8))


def _map(descriptor: int, nbytes: int, *, writable: bool, at: int = 0) -> int:
    protection = mmap.PROT_READ | (mmap.PROT_WRITE if writable else 0)
    flags = mmap.MAP_SHARED | (_MAP_FIXED if at else 0)
    address: int | None = _libc.mmap(at or None, nbytes, protection, flags, descriptor, 0)
    if address is None or address == _FAILED:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    _libc.madvise(address, nbytes, _MADV_HUGEPAGE)  # heard where the machine allows it
    return address
