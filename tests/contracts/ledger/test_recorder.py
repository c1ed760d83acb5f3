"""`Recorder`: what every implementation promises to the data path."""

import asyncio
from typing import Any

import pytest

from stoker.errors import LedgerUnavailable
from stoker.ledger.domain.reports import UsageQuery
from stoker.testing.ledger_rows import NOON_US, a_settlement, a_transition, an_attempt, an_intent

EVERYTHING = UsageQuery(0, 2**60, ())


async def totals(ledger: Any) -> Any:
    rows = (await ledger.usage(EVERYTHING)).rows
    return rows[0] if rows else None


async def test_a_request_is_stored_once_its_futures_are_done(ledger: Any) -> None:
    await ledger.begin(an_intent())
    assert (await totals(ledger)).num_open == 1
    await ledger.settle(a_settlement())
    row = await totals(ledger)
    assert (row.num_requests, row.num_open, row.output_tokens) == (1, 0, 5)


async def test_the_same_intent_twice_is_stored_once(ledger: Any) -> None:
    await asyncio.gather(ledger.begin(an_intent()), ledger.begin(an_intent(deployment="other")))
    assert (await totals(ledger)).num_requests == 1


@pytest.mark.parametrize("is_together", [True, False], ids=["in one batch", "in two batches"])
async def test_the_same_settlement_twice_counts_once(ledger: Any, is_together: bool) -> None:
    await ledger.begin(an_intent())
    first = ledger.settle(a_settlement())
    if not is_together:
        await first
    again = a_settlement(output_tokens=999, attempts=(an_attempt(1), an_attempt(2, replica_id="chat-00000002")))
    await asyncio.gather(first, ledger.settle(again))
    assert (await totals(ledger)).output_tokens == 5


async def test_intent_and_settlement_may_share_a_batch(ledger: Any) -> None:
    await asyncio.gather(ledger.begin(an_intent()), ledger.settle(a_settlement()))
    assert (await totals(ledger)).num_open == 0


async def test_a_settlement_without_its_intent_fails_and_leaves_nothing(ledger: Any) -> None:
    with pytest.raises(LedgerUnavailable):
        await ledger.settle(a_settlement("req_unknown"))
    await ledger.begin(an_intent("req_unknown"))
    assert (await totals(ledger)).num_open == 1


async def test_one_bad_row_does_not_fail_its_neighbours(ledger: Any) -> None:
    good = [ledger.begin(an_intent(f"req_{n}")) for n in range(100)]
    bad = ledger.settle(a_settlement("req_unknown"))
    also_good = [ledger.settle(a_settlement(f"req_{n}")) for n in range(100)]
    await asyncio.gather(*good, *also_good)
    with pytest.raises(LedgerUnavailable):
        await bad
    assert (await totals(ledger)).outcomes == {"completed": 100}


async def test_cancelling_the_waiter_does_not_cancel_the_write(ledger: Any) -> None:
    async def wait() -> None:
        await ledger.begin(an_intent())

    waiter = asyncio.create_task(wait())
    await asyncio.sleep(0)
    waiter.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiter
    await ledger.flush()
    assert (await totals(ledger)).num_requests == 1


async def test_flush_waits_for_everything_queued(ledger: Any) -> None:
    futures = [ledger.begin(an_intent(f"req_{n}")) for n in range(50)]
    await ledger.flush()
    assert all(future.done() for future in futures)


async def test_events_move_the_replicas_interval(ledger: Any) -> None:
    await asyncio.gather(
        ledger.record(a_transition(1)),
        ledger.record(a_transition(2, from_status="starting", to_status="starting")),
        ledger.record(a_transition(3, from_status="starting", to_status="ready", memory_bytes=7)),
    )
    assert [(i.status, i.sequence, i.ended_at_us) for i in await ledger.replica_intervals()] == [
        ("starting", 1, NOON_US + 3_000_000),
        ("ready", 3, None),
    ]
    await ledger.record(a_transition(4, from_status="ready", to_status="stopped", is_final=True))
    assert await ledger.replica_intervals(only_open=True) == []
    assert [event.sequence for event in await ledger.replica_events("chat-00000001")] == [1, 2, 3, 4]


async def test_the_same_event_twice_moves_nothing(ledger: Any) -> None:
    first = a_transition(1)
    await ledger.record(first)
    await ledger.record(a_transition(2, from_status="starting", to_status="ready"))
    await ledger.record(first)
    assert [i.status for i in await ledger.replica_intervals(only_open=True)] == ["ready"]
    assert (await ledger.replica_events())[0] == first


async def test_an_event_that_is_older_than_the_interval_makes_an_empty_one(ledger: Any) -> None:
    await ledger.record(a_transition(1, at_us=NOON_US))
    await ledger.record(a_transition(2, at_us=NOON_US - 5, from_status="starting", to_status="ready"))
    assert [(i.started_at_us, i.ended_at_us) for i in await ledger.replica_intervals()] == [
        (NOON_US, NOON_US),
        (NOON_US, None),
    ]
