"""What a job may ask for, and records that are not ours."""

from __future__ import annotations

from typing import Any

import pytest

from elasticps.core.consistency import Consistency, Guarantees, check_guarantees
from elasticps.core.ids import NodeId
from elasticps.core.records import WorkerRecord, decode, encode
from elasticps.errors import StoreError, UsageError


@pytest.mark.parametrize(
    "wanted",
    [
        {},
        {"replicas": 1},
        {"replicas": 7, "min_insync": 7},
        {"consistency": Consistency.BOUNDED},
        {"consistency": Consistency.BOUNDED, "staleness": 5},
        {"consistency": Consistency.ASYNC},
        {"backup_workers": 1},
        {"checkpoint_dir": "/saved", "checkpoint_every": 10, "resume": "/old..er/..."},
    ],
)
def test_what_can_be_promised_is_accepted(wanted: dict[str, Any]) -> None:
    check_guarantees(Guarantees(**wanted), start_workers=2)


@pytest.mark.parametrize(
    ("wanted", "field", "limit"),
    [
        ({"replicas": 0}, "replicas", "1 to 7"),
        ({"replicas": 8}, "replicas", "1 to 7"),
        ({"replicas": -1}, "replicas", "1 to 7"),
        ({"min_insync": 0}, "min_insync", "1 to 2"),
        ({"min_insync": 3}, "min_insync", "1 to 2"),
        ({"staleness": 1}, "staleness", "0 unless the consistency is bounded"),
        ({"staleness": -1, "consistency": Consistency.BOUNDED}, "staleness", "0 to 1000000000"),
        ({"backup_workers": -1}, "backup_workers", "at least 0"),
        ({"backup_workers": 2}, "backup_workers", "fewer than the 2 workers"),
        ({"backup_workers": 1, "consistency": Consistency.ASYNC}, "backup_workers", "sync"),
        ({"checkpoint_every": -1}, "checkpoint_every", "0 to"),
        ({"checkpoint_every": 1}, "checkpoint_dir", "an absolute path"),
        ({"checkpoint_dir": "saved"}, "checkpoint_dir", "an absolute path"),
        ({"resume": "saved"}, "resume", "an absolute path"),
        ({"resume": "/a/../b"}, "resume", 'without ".."'),
        ({"resume": "/a\0"}, "resume", "an absolute path"),
    ],
)
def test_what_cannot_be_promised_is_refused_with_field_and_limit(
    wanted: dict[str, Any], field: str, limit: str
) -> None:
    with pytest.raises(UsageError) as refused:
        check_guarantees(Guarantees(**wanted), start_workers=2)
    assert refused.value.field == field
    assert limit in (refused.value.limit or "")


@pytest.mark.parametrize(
    "value",
    [
        b"",
        b"null",
        b"[]",
        b"{}",
        b"not ours",
        b'{"node": 3}',
        b'{"node": "a", "state": "resting"}',
        b'{"node": "a"',
        b'{"node": "\xff\xfe"}',
        b'{"unknown": ' + b"[" * 100_000,
    ],
)
def test_a_value_that_is_not_such_a_record_is_a_store_error_that_names_its_key(
    value: bytes,
) -> None:
    with pytest.raises(StoreError) as refused:
        decode(value, WorkerRecord, "/elasticps/c/key")
    assert refused.value.where == "/elasticps/c/key"


def test_a_record_with_a_loss_that_is_no_number_still_reads_back() -> None:
    record = WorkerRecord(node=NodeId("a"), metrics={"loss": float("nan"), "accuracy": 0.5})
    read = decode(encode(record), WorkerRecord, "key")
    assert read.metrics == {"loss": None, "accuracy": 0.5}
