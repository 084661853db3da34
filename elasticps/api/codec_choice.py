"""How a user writes down a job's codec: ``int8``, ``top-k:ratio=0.01+int8``, ``ef+sign``."""

from __future__ import annotations

import re
from dataclasses import dataclass

from elasticps.api.choice import check_choice
from elasticps.api.plugins import CODECS
from elasticps.errors import UsageError

NONE = "none"
FEEDBACK = "ef"
_PLUS = re.compile(r"\+(?![0-9])")  # not the plus of 1e+3


@dataclass(frozen=True, slots=True, kw_only=True)
class CodecChoice:
    """``parts`` are the codecs, each of which codes what the one before has kept.

    None: gradients go as they are. ``error_feedback``: what coding loses is sent later.
    """

    parts: tuple[str, ...] = ()
    error_feedback: bool = False


def parse_codec(text: str) -> CodecChoice:
    """The choice that ``text`` spells. Raises UsageError, with the field codec."""
    if text == NONE:
        return CodecChoice()
    parts = _PLUS.split(text)
    feedback = parts[0] == FEEDBACK
    parts = parts[feedback:]
    if not all(parts) or parts in ([], [NONE]) or FEEDBACK in parts:
        raise UsageError(
            f"{text!r} chooses no codec",
            field="codec",
            limit="CODEC, CODEC+CODEC, or ef+ and one of these",
        )
    return CodecChoice(parts=tuple(parts), error_feedback=feedback)


def check_codec(text: str) -> None:
    """Raise UsageError where ``text`` is no choice, PluginError where a name is not installed."""
    for part in parse_codec(text).parts or (NONE,):
        check_choice(CODECS, part, "codec")
