"""What decoding bytes raises where they are not the message: never one kind of error alone."""

from __future__ import annotations

import msgspec

UNDECODABLE = (msgspec.MsgspecError, UnicodeError, RecursionError)
"""A text that is not UTF-8 and a list nested too deeply are no errors of msgspec's own."""
