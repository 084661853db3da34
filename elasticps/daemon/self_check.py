"""Whether this daemon still does what others rely on: asked before each word to the watchdog."""

from __future__ import annotations

import asyncio
from types import TracebackType
from typing import Self

import aiohttp

from elasticps.wire.address import Address


class SelfCheck:
    """``async with SelfCheck(url, control)``: from outside, as a client and a child would.

    That the check runs at all shows that the event loop turns. It does not ask etcd: a daemon that
    waits for etcd is well. ``url`` is the API's, ``control`` the socket of children.
    """

    def __init__(self, url: str, control: Address) -> None:
        self._url = f"{url}/healthz"
        self._control = control

    async def __aenter__(self) -> Self:
        # A new connection each time: accepting is what stops first, without descriptors say.
        self._client = aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True))
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self._client.close()

    async def fault(self, limit_s: float) -> str | None:
        """What is wrong, None where nothing is. Takes at most ``limit_s``."""
        asked = "the API"
        try:
            async with asyncio.timeout(limit_s):
                await self._ask_api()
                asked = "the children's socket"
                await self._ask_control()
        except TimeoutError:
            return f"{asked} did not answer within {limit_s:g} s"
        except (OSError, aiohttp.ClientError) as error:
            return f"{asked} cannot be reached: {error}"
        return None

    async def _ask_api(self) -> None:
        try:
            async with self._client.get(self._url, ssl=False):
                return  # any answer shows that it is served
        except aiohttp.ClientSSLError:
            return  # it was served, if not what was asked
        except aiohttp.ServerDisconnectedError:
            return

    async def _ask_control(self) -> None:
        _, writer = await asyncio.open_unix_connection(self._control.path)
        writer.close()
        await writer.wait_closed()
