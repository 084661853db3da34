"""The pool of gRPC channels, one an endpoint, and the one way to make a call through it.

A call goes to the current endpoint until that fails; then the next one becomes current. A request
that may have taken effect is not sent twice unless the caller says that it is repeatable.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import grpc
from aetcd import rpc

from elasticps.errors import StoreUnavailable
from elasticps.store.config import StoreConfig
from elasticps.store.faults import Fault, fault_of, refusal, words_of
from elasticps.store.history import History

Metadata = Sequence[tuple[str, str]]

_OPTIONS: list[tuple[str, int]] = [
    # etcd hangs up on clients that ping more often than every 5 s, or without a call.
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 3_000),
    ("grpc.keepalive_permit_without_calls", 0),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    # In spite of its name this one bounds a single attempt to connect, handshake included.
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_receive_message_length", -1),
    ("grpc.max_send_message_length", -1),
    # A pool's connections are its own: a stuck one must not be shared with another pool.
    ("grpc.use_local_subchannel_pool", 1),
    ("grpc.service_config_disable_resolution", 1),
    ("grpc.enable_http_proxy", 0),
]
# A member that has no leader says so at once instead of holding the request.
_REQUIRE_LEADER = ("hasleader", "true")
_FIRST_LOOK_S = 0.005
_LONGEST_LOOK_S = 0.1
_PAUSE_S = 0.05
_ASK_WHY_S = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class Link:
    """One endpoint: its channel and etcd's services on it."""

    target: str
    channel: grpc.aio.Channel
    auth: Any
    kv: Any
    lease: Any
    maintenance: Any
    watch: Any


class Endpoints:
    """The links to all endpoints. ``open`` needs a running loop and sends nothing.

    ``on_answer`` is told how many seconds each answer took, ``on_failure`` of each try that failed.
    """

    def __init__(self, config: StoreConfig) -> None:
        self.config = config
        self.on_answer: Callable[[float], None] = lambda _: None
        self.on_failure: Callable[[], None] = lambda: None
        self.history = History()
        self._links: list[Link] = []
        self._current = 0
        self._token: str | None = None
        self._login = asyncio.Lock()

    def open(self) -> None:
        credentials = _credentials(self.config)
        self._links = [_link(target, credentials) for target in self.config.targets]

    async def aclose(self) -> None:
        links, self._links = self._links, []
        for link in links:
            await link.channel.close(None)

    async def call(
        self,
        method: Callable[[Link], Any],
        request: Any,
        *,
        timeout_s: float | None = None,
        repeatable: bool = False,
        linearizable: bool = True,
        log_in: bool = True,
    ) -> Any:
        """Call ``method(link)(request)`` on the current endpoint and return the answer.

        A request that has not begun goes to the next endpoint until ``timeout_s`` is over. One
        whose answer is lost goes on only when it is ``repeatable``. What a member answers from its
        own data alone is not ``linearizable``: one whose data lags is left for the next.

        Raises StoreUnavailable (it may have taken effect), StoreError, LeaseLost or WatchCompacted
        when etcd refuses, StoreRolledBack from the first answer on that shows a lost history.
        """
        budget_s = self.config.request_timeout_s if timeout_s is None else timeout_s
        deadline = time.monotonic() + budget_s
        attempt_s = budget_s / len(self._links) if repeatable else budget_s
        why: str | None = None
        while True:
            link = await self.connected(deadline, why=why)
            metadata = await self.metadata(deadline) if log_in else (_REQUIRE_LEADER,)
            timeout = min(attempt_s, max(deadline - time.monotonic(), 0.0))
            self.history.raise_if_broken()
            seen, sent_s = self.history.revision, time.monotonic()
            try:
                answer = await method(link)(
                    request, timeout=timeout, metadata=metadata, wait_for_ready=True
                )
            except grpc.aio.AioRpcError as error:
                fault = self.judge(link, error, metadata)
                self.on_failure()
                why = words_of(error)
                if fault is Fault.UNKNOWN and not repeatable:
                    raise self._unavailable(why, link.target) from error
            else:
                self.on_answer(time.monotonic() - sent_s)
                if linearizable or not self.history.is_behind(answer.header, seen):
                    self.history.take(answer.header, seen)
                    return answer
                why = f"{link.target} has not caught up with revision {seen}"
                self.leave(link)
            await asyncio.sleep(_PAUSE_S)

    async def connected(self, deadline: float, *, why: str | None = None) -> Link:
        """The current link, or else the next one that is connected; waits until ``deadline``.

        ``deadline`` is on the monotonic clock. Raises StoreUnavailable, with ``why`` as the last
        known reason.
        """
        look_s = _FIRST_LOOK_S
        while True:
            if not self._links:
                raise RuntimeError("the store is not open")
            for step in range(len(self._links)):
                index = (self._current + step) % len(self._links)
                link = self._links[index]
                state = link.channel.get_state(try_to_connect=True)
                if state is grpc.ChannelConnectivity.READY and time.monotonic() < deadline:
                    self._current = index
                    return link
            if time.monotonic() >= deadline:
                self.on_failure()
                raise self._unavailable(why or await self._why_not_connected())
            # Looking at the state again is cheap and, unlike gRPC's own wait, cancellable.
            await asyncio.sleep(look_s)
            look_s = min(2 * look_s, _LONGEST_LOOK_S)

    def judge(self, link: Link, error: grpc.aio.AioRpcError, metadata: Metadata) -> Fault:
        """Learn from a failed call: leave the endpoint, forget the token, or raise the refusal."""
        fault = fault_of(error)
        if fault is Fault.STALE_TOKEN and self.config.username is not None:
            if ("token", self._token) in metadata:
                self._token = None
        elif fault in (Fault.NOT_BEGUN, Fault.UNKNOWN):
            self.leave(link)
        else:
            raise refusal(error, link.target) from error
        return fault

    def leave(self, link: Link) -> None:
        """Make the next endpoint current, unless another call has done so already."""
        if self._links and self._links[self._current] is link:
            self._current = (self._current + 1) % len(self._links)

    async def metadata(self, deadline: float) -> Metadata:
        """What goes with every call; logs in first where the configuration names a user."""
        if self.config.username is None:
            return (_REQUIRE_LEADER,)
        async with self._login:
            if self._token is None:
                request = rpc.AuthenticateRequest(
                    name=self.config.username, password=self.config.password
                )
                answer = await self.call(
                    lambda link: link.auth.Authenticate,
                    request,
                    timeout_s=max(deadline - time.monotonic(), 0.0),
                    repeatable=True,
                    log_in=False,
                )
                self._token = answer.token
            return (_REQUIRE_LEADER, ("token", str(self._token)))

    def _unavailable(self, why: str, where: str | None = None) -> StoreUnavailable:
        return StoreUnavailable(
            f"etcd did not answer in time: {why}",
            where=where or ", ".join(self.config.targets),
            limit=f"{self.config.request_timeout_s} s",
        )

    async def _why_not_connected(self) -> str:
        """Only a call that fails says why there is no connection (a refused certificate, say)."""
        if not self._links:
            return "closed"
        link = self._links[self._current]
        try:
            await link.maintenance.Status(rpc.StatusRequest(), timeout=_ASK_WHY_S)
        except grpc.aio.AioRpcError as error:
            return words_of(error)
        return "connected too late"


def _link(target: str, credentials: grpc.ChannelCredentials | None) -> Link:
    if credentials is None:
        channel = grpc.aio.insecure_channel(target, options=_OPTIONS)
    else:
        channel = grpc.aio.secure_channel(target, credentials, options=_OPTIONS)
    return Link(
        target=target,
        channel=channel,
        auth=rpc.AuthStub(channel),
        kv=rpc.KVStub(channel),
        lease=rpc.LeaseStub(channel),
        maintenance=rpc.MaintenanceStub(channel),
        watch=rpc.WatchStub(channel),
    )


def _credentials(config: StoreConfig) -> grpc.ChannelCredentials | None:
    if not config.tls:
        return None
    return grpc.ssl_channel_credentials(
        root_certificates=config.ca.read_bytes() if config.ca else None,
        private_key=config.key.read_bytes() if config.key else None,
        certificate_chain=config.cert.read_bytes() if config.cert else None,
    )
