"""Role tokens: what a user of the HTTP API shows, kept as hashes in a file that every node has.

A token is 256 random bits, so that its SHA-256 tells nothing of it and need not be slow.
"""

from __future__ import annotations

import hashlib
import hmac
import logging
import re
import secrets
import time
from enum import Enum
from pathlib import Path

import msgspec

from elasticps.core.undecodable import UNDECODABLE
from elasticps.errors import UsageError
from elasticps.security.files import Reloaded, read_secret, replace_private

log = logging.getLogger(__name__)

PREFIX = "eps_"
"""By which a scanner for leaked secrets knows them."""
SECRET_BYTES = 32
MAX_TOKENS = 10_000
NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,62}")


class Role(Enum):
    """What a token is good for; each includes those before it."""

    READ = "read"
    SUBMIT = "submit"
    ADMIN = "admin"

    def includes(self, other: Role) -> bool:
        order = list(Role)
        return order.index(self) >= order.index(other)


class TokenEntry(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One token: whose it is and what for. ``expires_unix`` None: it holds until it is revoked."""

    name: str
    role: Role
    sha256: str
    created_unix: float
    expires_unix: float | None = None


class _Tokens(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    tokens: tuple[TokenEntry, ...] = ()


class TokenFile:
    """The tokens of a file, as it is by now. Where it cannot be read, no token is good."""

    def __init__(self, path: Path) -> None:
        read_tokens(path)  # at the start that is an error, and ends there
        self._path = path
        self._entries = Reloaded((path,), self._load)

    def find(self, token: str) -> TokenEntry | None:
        """The entry of ``token``; takes the same time for every token that is none."""
        digest = _digest(token)
        found = None
        for entry in self._entries.now:
            if hmac.compare_digest(entry.sha256.encode(), digest.encode()):
                found = entry
        if found and found.expires_unix is not None and found.expires_unix <= time.time():
            return None
        return found

    def _load(self) -> tuple[TokenEntry, ...]:
        try:
            return read_tokens(self._path)
        except UsageError as error:
            log.error("no token is good any more: %s", error)
            return ()


def create_token(path: Path, name: str, role: Role, *, days: int | None = None) -> str:
    """Add a token to the file, which is made if it is not there, and return it, once and for all.

    Raises UsageError for a name that is taken or is none.
    """
    if not NAME.fullmatch(name):
        raise UsageError(f"{name[:80]!r} is no name", field="name", limit=NAME.pattern)
    entries = read_tokens(path) if path.exists() else ()
    if any(entry.name == name for entry in entries):
        raise UsageError(
            f"there is a token {name}", field="name", hint="revoke it, or choose another name"
        )
    if len(entries) >= MAX_TOKENS:
        raise UsageError("one token too many", where=str(path), limit=str(MAX_TOKENS))
    token = PREFIX + secrets.token_urlsafe(SECRET_BYTES)
    now = time.time()
    entry = TokenEntry(
        name=name,
        role=role,
        sha256=_digest(token),
        created_unix=now,
        expires_unix=None if days is None else now + days * 86_400,
    )
    _write(path, (*entries, entry))
    return token


def revoke_token(path: Path, name: str) -> None:
    """Raises UsageError when there is none of that name."""
    entries = read_tokens(path)
    left = tuple(entry for entry in entries if entry.name != name)
    if len(left) == len(entries):
        raise UsageError(
            f"there is no token {name[:80]!r}",
            where=str(path),
            field="name",
            limit=", ".join(entry.name for entry in entries) or "there is none at all",
        )
    _write(path, left)


def read_tokens(path: Path) -> tuple[TokenEntry, ...]:
    """Raises UsageError for a file that others may read, or that is no file of tokens."""
    content = read_secret(path, "tokens")
    try:
        return msgspec.json.decode(content, type=_Tokens).tokens
    except UNDECODABLE as error:
        raise UsageError(
            f"not a file of tokens: {error}",
            where=str(path),
            field="tokens",
            hint="elasticps token create makes one",
        ) from None


def _digest(token: str) -> str:
    return hashlib.sha256(token.encode("utf-8", "surrogateescape")).hexdigest()


def _write(path: Path, entries: tuple[TokenEntry, ...]) -> None:
    content = msgspec.json.format(msgspec.json.encode(_Tokens(tokens=entries)), indent=1)
    replace_private(path, content + b"\n")
