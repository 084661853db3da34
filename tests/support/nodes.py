"""An authority and the nodes that it has issued certificates for, as ``elasticps certs`` does."""

from __future__ import annotations

from pathlib import Path

from elasticps.security.authority import issue, make_authority
from elasticps.security.tls import TlsFiles


class Authority:
    """``Authority(directory).node("n1")``: files of a node of this authority's cluster."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.ca = make_authority(directory, "test", days=30).cert

    def node(self, name: str, *hosts: str, days: int = 30) -> TlsFiles:
        made = issue(self.directory, name, hosts or ("127.0.0.1",), days=days)
        return TlsFiles(ca=self.ca, cert=made.cert, key=made.key)
