"""Waiting with a limit on an injected clock. Touches the running event loop."""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from typing import Any

from stoker.clock import Clock


async def wait_within(clock: Clock, limit_s: float, awaited: Coroutine[Any, Any, Any]) -> bool:
    """Wait for `awaited`, at most `limit_s` seconds; it is cancelled when the time is up or the caller leaves.

    Returns:
        True when it ended in time; its exception is raised here.
    """
    task = asyncio.ensure_future(awaited)
    limit = asyncio.ensure_future(clock.sleep(limit_s))
    try:
        await asyncio.wait({task, limit}, return_when=asyncio.FIRST_COMPLETED)
        if task.done():
            task.result()
            return True
        return False
    finally:
        task.cancel()
        limit.cancel()
