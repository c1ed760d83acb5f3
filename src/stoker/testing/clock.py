"""Time that stands still until a test moves it. Touches the running event loop only to let tasks run."""

from __future__ import annotations

import asyncio
import heapq
import itertools
from datetime import UTC, datetime, timedelta

_EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
_SETTLE_ROUNDS = 50


class VirtualClock:
    """A `Clock` whose sleepers wake only by `advance`, in the order of their wake-up times.

    Args:
        start: the wall-clock time at monotonic second 0.
    """

    def __init__(self, start: datetime = _EPOCH) -> None:
        self._start = start
        self._now_s = 0.0
        self._order = itertools.count()
        self._sleepers: list[tuple[float, int, asyncio.Future[None]]] = []

    def monotonic_s(self) -> float:
        return self._now_s

    def now(self) -> datetime:
        return self._start + timedelta(seconds=self._now_s)

    async def sleep(self, delay_s: float) -> None:
        """Suspend until the clock has been advanced by `delay_s` seconds; 0 only yields to the loop."""
        if delay_s <= 0:
            await asyncio.sleep(0)
            return
        future: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        heapq.heappush(self._sleepers, (self._now_s + delay_s, next(self._order), future))
        await future

    @property
    def next_wake_s(self) -> float | None:
        """Monotonic second of the earliest live sleeper, None when nobody sleeps."""
        while self._sleepers and self._sleepers[0][2].done():
            heapq.heappop(self._sleepers)
        return self._sleepers[0][0] if self._sleepers else None

    async def advance(self, by_s: float = 0.0) -> None:
        """Move time forward by `by_s` seconds, waking each sleeper at its own instant and letting its tasks settle."""
        until_s = self._now_s + by_s
        await settle()
        while (wake_s := self.next_wake_s) is not None and wake_s <= until_s:
            self._now_s = max(self._now_s, wake_s)
            heapq.heappop(self._sleepers)[2].set_result(None)
            await settle()
        self._now_s = max(self._now_s, until_s)
        await settle()


async def settle(rounds: int = _SETTLE_ROUNDS) -> None:
    """Let every runnable task run until it waits for something; `rounds` bounds chains of hand-overs."""
    for _ in range(rounds):
        await asyncio.sleep(0)
