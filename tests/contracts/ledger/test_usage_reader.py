"""`UsageReader`: a report added up in the database equals the reference on the same rows."""

import asyncio
import random
from typing import Any

import pytest

from stoker.ledger.domain.reports import DIMENSIONS, US_PER_DAY, UsageQuery, usage_report
from stoker.ledger.records import RequestIntent, Settlement
from stoker.testing.ledger_rows import NOON_US, a_settlement, a_transition, an_attempt, an_intent

OUTCOMES = ["completed", "refused", "disconnected", "engine_error"]


def some_rows(seed: int) -> tuple[list[RequestIntent], dict[str, Settlement]]:
    draw = random.Random(seed)
    intents, settlements = [], {}
    for number in range(300):
        request_id = f"req_{number}"
        arrived_at_us = NOON_US + draw.randrange(3 * US_PER_DAY)
        intents.append(
            an_intent(
                request_id, arrived_at_us=arrived_at_us, deployment=draw.choice("ab"), key_id=draw.choice("kl"),
                tenant=draw.choice(["t", "ü"]), tier=draw.choice(["serverless", "dedicated"]),
            )
        )  # fmt: skip
        if draw.random() < 0.1:
            continue

        def maybe(value: Any) -> Any:
            return value if draw.random() < 0.8 else None

        cold_start_s = draw.choice([0.0, 0.0, draw.randrange(1, 4000) / 1000])
        attempts = tuple(
            an_attempt(
                n, replica_id=draw.choice(["r1", "r2", None]), started_at_us=arrived_at_us,
                queue_s=draw.randrange(900) / 1000, ended_at_us=arrived_at_us + 10**6 * draw.randrange(1, 20_000),
            )
            for n in range(1, draw.randrange(1, 4))
        )  # fmt: skip
        settlements[request_id] = a_settlement(
            request_id, settled_at_us=arrived_at_us + draw.randrange(10**7), outcome=draw.choice(OUTCOMES),
            input_tokens=maybe(draw.randrange(1000)), output_tokens=maybe(draw.randrange(1000)),
            cached_input_tokens=maybe(draw.randrange(10)), has_exact_usage=draw.random() < 0.5,
            queue_s=cold_start_s + draw.randrange(1000) / 1000, cold_start_s=cold_start_s,
            gateway_ttft_s=maybe(draw.random()), itl_mean_s=maybe(draw.random()),
            price_nanousd=maybe(draw.randrange(10**6)), attempts=attempts,
        )  # fmt: skip
    return intents, settlements


@pytest.mark.parametrize(
    "group_by", [(), *((d,) for d in DIMENSIONS), DIMENSIONS], ids=lambda g: "+".join(g) or "whole"
)
async def test_a_report_equals_the_reference(ledger: Any, group_by: Any) -> None:
    intents, settlements = some_rows(7)
    await asyncio.gather(*map(ledger.begin, intents), *map(ledger.settle, settlements.values()))
    for replica_id in ("r1", "r2"):
        await ledger.record(a_transition(1, replica_id=replica_id, deployment="a"))
        await ledger.record(
            a_transition(2, replica_id=replica_id, deployment="a", from_status="starting", to_status="ready")
        )
    query = UsageQuery(NOON_US + US_PER_DAY // 3, NOON_US + 2 * US_PER_DAY, group_by)
    recorded = [(intent, settlements.get(intent.request_id)) for intent in intents]
    assert await ledger.usage(query) == usage_report(query, recorded, await ledger.replica_intervals())


async def test_an_empty_ledger_reports_nothing(ledger: Any) -> None:
    for group_by in ((), ("day",)):
        report = await ledger.usage(UsageQuery(0, 2**60, group_by))
        assert (report.rows, report.capacity) == ((), ())
