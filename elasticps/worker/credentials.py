"""How a worker proves itself, and others themselves to it: what its daemon gave it, renewed."""

from __future__ import annotations

from collections.abc import Callable
from typing import Generic, TypeVar

from elasticps.core.ids import JobKey, ServerId, WorkerId, node_of
from elasticps.errors import AccessDenied
from elasticps.security.authority import self_signed
from elasticps.security.passes import PassVerifier
from elasticps.security.tls import Secured, showing, trusting
from elasticps.wire.control_messages import Access
from elasticps.wire.messages import HelloMeta, PeerNote

CERTIFICATE_DAYS = 365
"""Of a listener that lives as long as its worker does."""

Name = TypeVar("Name")
CurrentAccess = Callable[[], Access]


class _Holder(Generic[Name]):
    """Shows the newest pass."""

    def __init__(self, access: CurrentAccess) -> None:
        self._access = access

    def token(self) -> bytes:
        return self._access().token


class ToServers(_Holder[ServerId]):
    """To shard servers, which prove themselves by the certificates of their nodes."""

    def secured(self, name: ServerId) -> Secured:
        return Secured(context=trusting(self._access().ca), name=node_of(name))


class ToPeers(_Holder[WorkerId]):
    """To workers of the same job, which prove themselves by what they wrote on the bulletin."""

    def __init__(self, access: CurrentAccess, note: Callable[[WorkerId], PeerNote]) -> None:
        super().__init__(access)
        self._note = note

    def secured(self, name: WorkerId) -> Secured:
        return Secured(context=trusting(self._note(name).certificate), name=listener_name(name))


class Listening:
    """What a worker's own listener is proven by, and how it tells its peers from strangers."""

    def __init__(self, access: CurrentAccess, worker: WorkerId) -> None:
        self.certificate, key = self_signed(listener_name(worker), days=CERTIFICATE_DAYS)
        self.context = showing(self.certificate, key)
        self._access = access

    def check(self, hello: HelloMeta, job: JobKey) -> None:
        """Raises AccessDenied for who is no worker of ``job``."""
        verifier = PassVerifier(self._access().ca)
        shown = verifier.check(hello.token, cluster=hello.cluster, caller=hello.caller)
        if shown.job != job:
            raise AccessDenied(f"a pass for job {shown.job}", field="job", limit=str(job))


def listener_name(worker: WorkerId) -> str:
    return f"worker-{worker}"
