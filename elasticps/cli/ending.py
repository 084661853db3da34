"""Ending a job from the command line, whatever has become of its cluster."""

from __future__ import annotations

import asyncio
import contextlib
from typing import TYPE_CHECKING

from elasticps.errors import ElasticError

if TYPE_CHECKING:
    from elasticps.cli.client import Api

CANCEL_TIMEOUT_S = 5.0


async def cancel(api: Api, name: str) -> None:
    """Cancel the job; one that cannot be cancelled is left to end with its cluster."""
    with contextlib.suppress(ElasticError, TimeoutError):
        async with asyncio.timeout(CANCEL_TIMEOUT_S):
            await api.cancel(name)
