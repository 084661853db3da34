"""A recording on its way to the daemon: cut into messages that fit the control channel."""

from __future__ import annotations

from collections.abc import Iterator

from elasticps.core.ids import JobKey
from elasticps.wire.control_messages import RecordedSpans
from elasticps.wire.spans import Spans

SPANS_A_MESSAGE = 4096


def recorded(job: JobKey, spans: Spans) -> Iterator[RecordedSpans]:
    """End the recording and give what it has; the last message says so, and there is always one."""
    found, left_out = spans.stop()
    for start in range(0, len(found) or 1, SPANS_A_MESSAGE):
        end = start + SPANS_A_MESSAGE
        yield RecordedSpans(job, tuple(found[start:end]), left_out, last=end >= len(found))
