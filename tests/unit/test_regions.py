"""Regions: sealed, bounded, and renewed under the eyes of those who read them."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from elasticps.errors import WireError
from elasticps.wire.regions import Region, map_foreign

SIZE = 1 << 16
MOST = 1 << 20


@pytest.fixture
def region() -> Iterator[Region]:
    made = Region.make("test", SIZE, others_write=True)
    yield made
    made.close()


def test_both_sides_see_what_one_writes(region: Region) -> None:
    there = map_foreign(region.descriptor, writable=True, most=MOST)
    region.mapping.tensor[5] = 7
    there.tensor[6] = 8
    assert there.tensor[5] == 7
    assert region.mapping.tensor[6] == 8


def test_the_size_is_sealed(region: Region) -> None:
    for size in (SIZE // 2, 2 * SIZE):
        with pytest.raises(PermissionError):
            os.ftruncate(region.descriptor, size)


def test_gradients_can_be_mapped_for_reading_alone() -> None:
    region = Region.make("test", SIZE, others_write=False)
    with pytest.raises(WireError, match="cannot be mapped"):
        map_foreign(region.descriptor, writable=True, most=MOST)
    there = map_foreign(region.descriptor, writable=False, most=MOST)
    region.mapping.tensor.fill_(3)
    assert bool((there.tensor == 3).all())
    region.close()


def test_memory_whose_size_may_change_is_refused() -> None:
    unsealed = os.memfd_create("test", os.MFD_ALLOW_SEALING)
    os.ftruncate(unsealed, SIZE)
    with pytest.raises(WireError, match="seal"):
        map_foreign(unsealed, writable=False, most=MOST)
    os.close(unsealed)


def test_what_is_no_memory_is_refused() -> None:
    reading, writing = os.pipe()
    with pytest.raises(WireError, match="not a region"):
        map_foreign(reading, writable=False, most=MOST)
    os.close(reading)
    os.close(writing)


def test_a_region_beyond_the_limit_is_refused(region: Region) -> None:
    with pytest.raises(WireError, match="limit"):
        map_foreign(region.descriptor, writable=False, most=SIZE - 1)


def test_fresh_pages_have_the_contents_and_take_no_late_write(region: Region) -> None:
    there = map_foreign(region.descriptor, writable=True, most=MOST)
    here = region.mapping.tensor[64:128]
    here.fill_(1)
    address = here.data_ptr()
    region.renew("test", others_write=True)
    there.tensor.fill_(9)
    assert here.data_ptr() == address
    assert bool((here == 1).all())
    here.fill_(2)
    assert bool((there.tensor == 9).all()), "what was read there must not change either"


def test_tensors_outlive_the_region_that_made_them() -> None:
    region = Region.make("test", SIZE, others_write=True)
    piece = region.mapping.tensor[100:200].fill_(4)
    region.close()
    del region
    assert int(piece.sum()) == 400


def test_an_unmapped_region_frees_its_pages() -> None:
    region = Region.make("test", SIZE, others_write=True)
    found = f"{region.mapping.address:x}-"
    assert found in Path("/proc/self/maps").read_text()
    region.close()
    del region
    assert found not in Path("/proc/self/maps").read_text()


def test_places_are_told_by_address(region: Region) -> None:
    mapping = region.mapping
    assert mapping.offset_of(mapping.address + 64, 10) == 64
    assert mapping.offset_of(mapping.address + SIZE - 9, 10) is None
    assert mapping.offset_of(torch.zeros(10).data_ptr(), 10) is None
