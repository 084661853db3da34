"""Where etcd is and how to prove ourselves to it: validated once, before anything is opened."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import urlsplit

from elasticps.errors import UsageError
from elasticps.security.files import read_file, read_secret


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreConfig:
    """How to reach an etcd cluster.

    ``endpoints`` are "host:port" or "http(s)://host:port". TLS is used when an endpoint says
    https or when any of ``ca``, ``cert`` and ``key`` (PEM files) is given; there is no fallback to
    plaintext. ``request_timeout_s`` bounds every call as a whole, all its attempts included.

    Raises UsageError, naming the field, for whatever cannot work.
    """

    endpoints: tuple[str, ...]
    ca: Path | None = None
    cert: Path | None = None
    key: Path | None = None
    username: str | None = None
    password: str | None = field(default=None, repr=False)
    request_timeout_s: float = 2.0

    def __post_init__(self) -> None:
        if not self.endpoints:
            raise UsageError("no etcd endpoint is given", field="endpoints", hint="host:port")
        schemes = {_split(endpoint)[0] for endpoint in self.endpoints}
        if self.tls and "http" in schemes:
            raise UsageError(
                "an http:// endpoint is given together with TLS",
                field="endpoints",
                hint="write https:// for all endpoints, or leave out https, ca, cert and key",
            )
        for name, path in self._files():
            _require_pem(name, path)
        if (self.cert is None) != (self.key is None):
            missing = "key" if self.key is None else "cert"
            raise UsageError("a certificate and its key go together", field=missing)
        if (self.username is None) != (self.password is None):
            missing = "password" if self.password is None else "username"
            raise UsageError("a user name and its password go together", field=missing)
        if not (math.isfinite(self.request_timeout_s) and self.request_timeout_s > 0):
            raise UsageError(
                f"{self.request_timeout_s} is not a time to wait",
                field="request_timeout_s",
                limit="more than 0 s",
            )

    @property
    def tls(self) -> bool:
        schemes = (_split(endpoint)[0] for endpoint in self.endpoints)
        return bool(self._files()) or "https" in schemes

    @property
    def targets(self) -> tuple[str, ...]:
        """The endpoints as "host:port"."""
        return tuple(_split(endpoint)[1] for endpoint in self.endpoints)

    def _files(self) -> list[tuple[str, Path]]:
        named = (("ca", self.ca), ("cert", self.cert), ("key", self.key))
        return [(name, path) for name, path in named if path is not None]


def _split(endpoint: str) -> tuple[str, str]:
    """The scheme ("" when absent) and the "host:port" of an endpoint."""
    parts = urlsplit(endpoint if "://" in endpoint else f"//{endpoint}")
    try:
        port = parts.port
    except ValueError:
        raise UsageError(
            f"the port of {endpoint!r} is not a port", field="endpoints", limit="1 to 65535"
        ) from None
    plain = parts.scheme in ("", "http", "https") and "@" not in parts.netloc
    extra = parts.path.strip("/") or parts.query or parts.fragment
    if not plain or extra or not parts.hostname or not port:
        raise UsageError(
            f"{endpoint!r} is not an etcd endpoint",
            field="endpoints",
            hint="write host:port, http://host:port or https://host:port",
        )
    return parts.scheme, parts.netloc


def _require_pem(name: str, path: Path) -> None:
    content = read_secret(path, name) if name == "key" else read_file(path, name)
    if b"-----BEGIN " not in content:
        raise UsageError("the file holds no PEM block", where=str(path), field=name)
