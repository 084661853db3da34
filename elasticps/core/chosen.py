"""The plugins that a job chose, by name and options: ``NAME`` or ``NAME:KEY=VALUE,KEY=VALUE``."""

from __future__ import annotations

import msgspec

DEFAULT_STRATEGY = "data-parallel"
DEFAULT_CODEC = "none"


class Chosen(msgspec.Struct, frozen=True, kw_only=True):
    """The part of a job's spec that says which plugins train it (``api.choice`` reads them).

    ``codec`` may be several, joined by ``+`` (``api.codec_choice``).
    """

    strategy: str = DEFAULT_STRATEGY
    codec: str = DEFAULT_CODEC
