"""What a job has measured of itself and of its links, for the cost model of ``core.cost``."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

PREFIX = "auto/"
DONE = "auto/done"
"""1 once nothing more will be measured."""
CODEC = "codec/"


class CodecSpeed(msgspec.Struct, frozen=True, kw_only=True):
    """``fraction`` of a gradient's bytes that are sent; seconds to code and decode a whole one."""

    fraction: float
    encode_s: float
    decode_s: float


class Measured(msgspec.Struct, frozen=True, kw_only=True):
    """Means of a few steps, in seconds, as one worker saw them while all did the same.

    ``compute_s``: from one step's end to the next one's exchange, of the slowest worker.
    ``optimizer_s``: the script's optimizer, here. ``exchange_s``: a data-parallel round, from the
    push to the pull. ``pull_s``: a read of the model. ``vote_s``: a round without tensors.
    ``sum_s``: a sum of the gradients over all workers, among themselves. ``fetch_s``: the model
    from one other worker. ``copy_s``: the model into one flat tensor and
    out of it. The link, as a
    worker has it while all use theirs: ``bytes_per_s``, 0 where there is one worker, and
    ``round_trip_s``.
    """

    steps: int
    workers: int
    model_bytes: int
    largest_parameter_bytes: int
    compute_s: float
    optimizer_s: float
    copy_s: float
    exchange_s: float
    pull_s: float
    vote_s: float
    sum_s: float
    fetch_s: float
    bytes_per_s: float
    round_trip_s: float
    codecs: Mapping[str, CodecSpeed]


def to_metrics(measured: Measured) -> dict[str, float]:
    """The same as numbers of the job's status."""
    fields = msgspec.structs.asdict(measured)
    codecs: Mapping[str, CodecSpeed] = fields.pop("codecs")
    numbers = {f"{PREFIX}{key}": float(item) for key, item in fields.items()}
    for name, speed in codecs.items():
        for key, item in msgspec.structs.asdict(speed).items():
            numbers[f"{PREFIX}{CODEC}{name}/{key}"] = item
    return numbers


def from_metrics(metrics: Mapping[str, float | None]) -> Measured | None:
    """What ``to_metrics`` has made of it; None where it is not, or not wholly, there."""
    fields: dict[str, object] = {}
    codecs: dict[str, dict[str, float | None]] = {}
    for key, item in metrics.items():
        if not key.startswith(PREFIX) or key == DONE:
            continue
        name = key.removeprefix(PREFIX)
        if name.startswith(CODEC):
            codec, _, field = name.removeprefix(CODEC).rpartition("/")
            codecs.setdefault(codec, {})[field] = item
        else:
            fields[name] = item
    try:
        # Not strictly: 3.0 is a whole number here.
        return msgspec.convert({**fields, "codecs": codecs}, Measured, strict=False)
    except msgspec.ValidationError:
        return None
