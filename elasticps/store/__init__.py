"""Everything that is kept in etcd, and the client that keeps it: keys, leases, elections, watches.

Nothing of a training step goes through here. No other package imports grpc or spells a key.
"""

from __future__ import annotations

from elasticps.store.client import Store
from elasticps.store.config import StoreConfig
from elasticps.store.election import Election
from elasticps.store.embedded import EmbeddedEtcd, EtcdBinary, find_etcd
from elasticps.store.lease import Lease, grant_unkept, revoke
from elasticps.store.operations import (
    Compare,
    Delete,
    Fence,
    Get,
    KeyValue,
    Listing,
    Put,
    ServerStatus,
    TxnResult,
)
from elasticps.store.schema import KeyKind, Keys, ParsedKey, check_format
from elasticps.store.watch import Batch, Changes, Event, Snapshot, watch_prefix

__all__ = [
    "Batch",
    "Changes",
    "Compare",
    "Delete",
    "Election",
    "EmbeddedEtcd",
    "EtcdBinary",
    "Event",
    "Fence",
    "Get",
    "KeyKind",
    "KeyValue",
    "Keys",
    "Lease",
    "Listing",
    "ParsedKey",
    "Put",
    "ServerStatus",
    "Snapshot",
    "Store",
    "StoreConfig",
    "TxnResult",
    "check_format",
    "find_etcd",
    "grant_unkept",
    "revoke",
    "watch_prefix",
]
