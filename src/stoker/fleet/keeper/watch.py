"""Finds the fleet another keeper when one was lost, with growing pauses. Touches nothing itself."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import Protocol

from stoker.clock import Clock
from stoker.errors import KeeperUnavailable
from stoker.events import EventBus, KeeperLost
from stoker.fleet.ports import Keeper

FIRST_PAUSE_S = 0.05
MAX_PAUSE_S = 5.0

log = logging.getLogger(__name__)


class Reconnectable(Protocol):
    """The part of the fleet that this needs."""

    async def reconnect(self, keeper: Keeper) -> None: ...


class KeeperWatch:
    """Answers `KeeperLost`, one reconnection at a time.

    Args:
        connect: starts or finds a keeper; raises `KeeperUnavailable`.
    """

    def __init__(
        self, fleet: Reconnectable, connect: Callable[[], Awaitable[Keeper]], clock: Clock, bus: EventBus
    ) -> None:
        self._fleet = fleet
        self._connect = connect
        self._clock = clock
        self._task: asyncio.Task[None] | None = None
        self._is_closed = False
        bus.subscribe(KeeperLost, self._on_lost)

    async def close(self) -> None:
        """Give up a reconnection that is under way."""
        self._is_closed = True
        if self._task is not None:
            self._task.cancel()
            await asyncio.gather(self._task, return_exceptions=True)

    def _on_lost(self, lost: KeeperLost) -> None:
        if self._is_closed or (self._task is not None and not self._task.done()):
            return
        log.error("keeper.lost", extra={"detail": lost.detail})
        self._task = asyncio.create_task(self._reconnect(), name="keeper-watch")

    async def _reconnect(self) -> None:
        pause_s = FIRST_PAUSE_S
        while True:
            try:
                await self._fleet.reconnect(await self._connect())
            except KeeperUnavailable as error:
                log.warning("keeper.unavailable", extra={"detail": str(error), "next_try_in_s": pause_s})
                await self._clock.sleep(pause_s)
                pause_s = min(MAX_PAUSE_S, pause_s * 2)
            else:
                log.info("keeper.found")
                return
