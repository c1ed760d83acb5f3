"""The clock that tests move."""

from __future__ import annotations

import asyncio

from stoker.testing.clock import VirtualClock, settle


async def test_sleepers_wake_in_order_each_at_its_own_instant() -> None:
    clock, woken = VirtualClock(), []

    async def sleep(name: str, delay_s: float) -> None:
        await clock.sleep(delay_s)
        woken.append((name, clock.monotonic_s()))

    tasks = [asyncio.create_task(sleep(*each)) for each in [("late", 3.0), ("early", 1.0), ("same", 1.0)]]
    await clock.advance(5.0)
    assert woken == [("early", 1.0), ("same", 1.0), ("late", 3.0)]
    assert all(each.done() for each in tasks)
    assert (clock.monotonic_s(), clock.now().second) == (5.0, 5)


async def test_who_sleeps_again_while_time_moves_is_woken_within_the_same_move() -> None:
    clock, ticks = VirtualClock(), []

    async def tick() -> None:
        while True:
            await clock.sleep(1.0)
            ticks.append(clock.monotonic_s())

    task = asyncio.create_task(tick())
    await clock.advance(3.5)
    assert ticks == [1.0, 2.0, 3.0]
    task.cancel()


async def test_cancelled_sleeper_is_forgotten() -> None:
    clock = VirtualClock()
    task = asyncio.create_task(clock.sleep(1.0))
    await settle()
    assert clock.next_wake_s == 1.0
    task.cancel()
    await settle()
    assert clock.next_wake_s is None
