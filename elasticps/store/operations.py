"""What can be asked of etcd and what it answers, and the translation to and from its messages."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum
from typing import Any

from aetcd import rpc

from elasticps.errors import StoreError, UsageError

MAX_VALUE_BYTES = 1024 * 1024
MAX_REQUEST_BYTES = 1536 * 1024
"""etcd's own limit on a request, by default."""
MAX_OPERATIONS = 128
"""etcd's own limit on the operations of one transaction, by default."""


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyValue:
    """A key as etcd holds it. ``lease`` is 0 for a key that outlives its writer."""

    key: str
    value: bytes
    create_revision: int
    mod_revision: int
    lease: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Listing:
    """The keys under a prefix, sorted, all as of ``revision``."""

    items: tuple[KeyValue, ...]
    revision: int


@dataclass(frozen=True, slots=True, kw_only=True)
class ServerStatus:
    """What one etcd member says of itself. ``leader`` is the leader's member id.

    ``db_size_in_use`` of the file's ``db_size`` bytes are not free; ``errors`` has its alarms.
    """

    version: str
    leader: int
    revision: int
    db_size: int
    db_size_in_use: int = 0
    errors: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Get:
    key: str


@dataclass(frozen=True, slots=True)
class Put:
    key: str
    value: bytes
    lease: int | None = None


@dataclass(frozen=True, slots=True)
class Delete:
    """Delete a key, or all keys that begin with it."""

    key: str
    prefix: bool = False


Operation = Get | Put | Delete
Response = KeyValue | int | None
"""A Get gives a KeyValue or None, a Delete the number of keys it deleted, a Put None."""


class Target(Enum):
    """Which revision of a key a Compare looks at. An absent key has 0 for both."""

    CREATED = rpc.Compare.CREATE
    MODIFIED = rpc.Compare.MOD


@dataclass(frozen=True, slots=True)
class Compare:
    """A condition of a transaction: the key's revision is ``revision``."""

    key: str
    target: Target
    revision: int

    @classmethod
    def created(cls, key: str, revision: int) -> Compare:
        return cls(key, Target.CREATED, revision)

    @classmethod
    def modified(cls, key: str, revision: int) -> Compare:
        return cls(key, Target.MODIFIED, revision)

    @classmethod
    def absent(cls, key: str) -> Compare:
        return cls(key, Target.CREATED, 0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TxnResult:
    """Whether all compares held, the store's revision then, and an answer to each operation."""

    succeeded: bool
    revision: int
    responses: tuple[Response, ...]


@dataclass(frozen=True, slots=True)
class Fence:
    """A won election: valid while ``key`` still has this create revision."""

    key: str
    create_revision: int


def key_bytes(key: str) -> bytes:
    if not key:
        raise UsageError("an etcd key is not empty", field="key")
    return key.encode()


def prefix_range(prefix: str) -> tuple[bytes, bytes]:
    """The half-open range of keys that begin with ``prefix``."""
    first = key_bytes(prefix)
    # UTF-8 has no byte 0xff, so the last byte can always grow.
    return first, first[:-1] + bytes([first[-1] + 1])


def put_request(put: Put) -> Any:
    size = len(put.value)
    if size > MAX_VALUE_BYTES:
        raise StoreError(
            f"a value of {size} bytes is too large", where=put.key, limit=f"{MAX_VALUE_BYTES} bytes"
        )
    return rpc.PutRequest(key=key_bytes(put.key), value=put.value, lease=put.lease or 0)


def delete_request(delete: Delete) -> Any:
    if not delete.prefix:
        return rpc.DeleteRangeRequest(key=key_bytes(delete.key))
    first, end = prefix_range(delete.key)
    return rpc.DeleteRangeRequest(key=first, range_end=end)


def txn_request(
    compares: tuple[Compare, ...], then: tuple[Operation, ...], otherwise: tuple[Operation, ...]
) -> Any:
    """Raises StoreError for more than etcd takes in one transaction."""
    count = max(len(compares), len(then), len(otherwise))
    if count > MAX_OPERATIONS:
        raise StoreError(
            f"a transaction of {count} operations is too long", limit=f"{MAX_OPERATIONS} operations"
        )
    request = rpc.TxnRequest(
        compare=[_compare_message(compare) for compare in compares],
        success=[_request_op(operation) for operation in then],
        failure=[_request_op(operation) for operation in otherwise],
    )
    size = request.ByteSize()
    if size > MAX_REQUEST_BYTES:
        raise StoreError(
            f"a transaction of {size} bytes is too large", limit=f"{MAX_REQUEST_BYTES} bytes"
        )
    return request


def key_value(message: Any) -> KeyValue:
    return KeyValue(
        key=_text(message.key),
        value=message.value,
        create_revision=message.create_revision,
        mod_revision=message.mod_revision,
        lease=message.lease,
    )


def txn_result(message: Any) -> TxnResult:
    return TxnResult(
        succeeded=message.succeeded,
        revision=message.header.revision,
        responses=tuple(_response(response) for response in message.responses),
    )


def _text(key: bytes) -> str:
    """A key that is not UTF-8 is not ours: it gets a name that tells which, and that no key has."""
    return key.decode(errors="backslashreplace")


def _compare_message(compare: Compare) -> Any:
    message = rpc.Compare(
        key=key_bytes(compare.key), result=rpc.Compare.EQUAL, target=compare.target.value
    )
    if compare.target is Target.CREATED:
        message.create_revision = compare.revision
    else:
        message.mod_revision = compare.revision
    return message


def _request_op(operation: Operation) -> Any:
    match operation:
        case Get(key):
            return rpc.RequestOp(request_range=rpc.RangeRequest(key=key_bytes(key)))
        case Put():
            return rpc.RequestOp(request_put=put_request(operation))
        case Delete():
            return rpc.RequestOp(request_delete_range=delete_request(operation))


def _response(message: Any) -> Response:
    match message.WhichOneof("response"):
        case "response_range":
            kvs = message.response_range.kvs
            return key_value(kvs[0]) if kvs else None
        case "response_delete_range":
            deleted: int = message.response_delete_range.deleted
            return deleted
        case _:
            return None
