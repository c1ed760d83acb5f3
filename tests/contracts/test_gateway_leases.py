"""What the gateway relies on in every `SlotLeases`, run on the shipped fake."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import pytest

from stoker.errors import Forbidden, UnknownModel
from stoker.fleet.ports import Endpoint, LeaseAsk, LeaseEnd, SlotLeases
from stoker.testing.gateway import FakeLeases, FakeReplica

END = LeaseEnd(0.1, 1, 1)


def fake() -> SlotLeases:
    here = Endpoint(socket_path="/tmp/none.sock")
    return FakeLeases({"chat": [FakeReplica("r-1", here), FakeReplica("r-2", here)]}, {"chat": ("acme",)})


@pytest.fixture(params=[fake])
def leases(request: pytest.FixtureRequest) -> SlotLeases:
    make: Callable[[], SlotLeases] = request.param
    return make()


def ask(deployment: str = "chat", tenant: str = "acme", excluded: frozenset[str] = frozenset()) -> LeaseAsk:
    return LeaseAsk("req_1", deployment, tenant, 10, 1e9, None, excluded)


async def test_unknown_and_reserved_deployments_are_refused(leases: SlotLeases) -> None:
    with pytest.raises(UnknownModel):
        await leases.acquire(ask("nobody"))
    with pytest.raises(Forbidden):
        await leases.acquire(ask(tenant="beta"))


async def test_a_slot_is_held_by_one_until_it_is_released_and_a_second_release_is_nothing(leases: SlotLeases) -> None:
    first, second = await leases.acquire(ask()), await leases.acquire(ask())
    assert first.lease_id != second.lease_id
    waiting = asyncio.create_task(leases.acquire(ask()))
    await asyncio.sleep(0)
    assert not waiting.done()
    leases.release(first, END)
    leases.release(first, END)
    assert (await waiting).replica_id == first.replica_id


async def test_an_excluded_replica_is_not_given_again(leases: SlotLeases) -> None:
    first = await leases.acquire(ask())
    leases.release(first, END)
    other = await leases.acquire(ask(excluded=frozenset({first.replica_id})))
    assert other.replica_id != first.replica_id


async def test_a_cancelled_wait_leaves_the_queue_and_loses_no_slot(leases: SlotLeases) -> None:
    held = [await leases.acquire(ask()), await leases.acquire(ask())]
    waiting = asyncio.create_task(leases.acquire(ask()))
    await asyncio.sleep(0)
    leases.release(held[0], END)  # granted in the same turn as it is cancelled
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    async with asyncio.timeout(1):
        await leases.acquire(ask())
