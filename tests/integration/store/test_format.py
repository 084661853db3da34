"""The version of what etcd holds is written once and checked by everyone."""

from __future__ import annotations

import asyncio

import pytest

from elasticps.errors import StoreError
from elasticps.store import Keys, Store, check_format

KEYS = Keys("lab")


async def test_a_new_cluster_gets_our_format_once(store: Store) -> None:
    await asyncio.gather(*(check_format(store, KEYS) for _ in range(8)))
    found = await store.get(KEYS.meta)
    assert found is not None
    assert found.value == b'{"format":1}'
    assert found.create_revision == found.mod_revision
    await check_format(store, KEYS)


async def test_another_format_is_refused_with_both_versions(store: Store) -> None:
    await store.put(KEYS.meta, b'{"format":2,"new":true}')
    with pytest.raises(StoreError, match=r"holds format 2.* speaks format 1") as caught:
        await check_format(store, KEYS)
    assert caught.value.where == KEYS.meta


@pytest.mark.parametrize("value", [b"", b"{}", b"\xff", b'{"format":"1"}', b"[" * 10_000])
async def test_a_value_that_is_not_ours_is_refused(store: Store, value: bytes) -> None:
    await store.put(KEYS.meta, value)
    with pytest.raises(StoreError, match="not ours"):
        await check_format(store, KEYS)
