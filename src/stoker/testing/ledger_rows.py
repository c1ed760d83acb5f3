"""Makes ledger rows with plausible values, so that a test names only what it is about. Pure."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from stoker.ledger.records import Attempt, ReplicaTransition, RequestIntent, Settlement, StoredKey

NOON_US = 1_795_262_400_000_000
"""2026-11-21T12:00:00Z."""


def an_intent(request_id: str = "req_1", **changes: Any) -> RequestIntent:
    """Return an intent that arrived at `NOON_US`."""
    intent = RequestIntent(
        request_id=request_id,
        arrived_at_us=NOON_US,
        key_id="key_1",
        tenant="default",
        deployment="chat",
        tier="serverless",
        surface="chat.completions",
        is_stream=True,
        max_output_tokens=None,
    )
    return replace(intent, **changes)


def an_attempt(number: int = 1, **changes: Any) -> Attempt:
    """Return a completed attempt that ran for half a second from `NOON_US` on, 0.1 s of it in the queue."""
    attempt = Attempt(
        number=number,
        replica_id="chat-00000001",
        tier="serverless",
        started_at_us=NOON_US,
        ended_at_us=NOON_US + 500_000,
        queue_s=0.1,
        cold_start_s=0.0,
        outcome="completed",
        error_code=None,
    )
    return replace(attempt, **changes)


def a_settlement(request_id: str = "req_1", **changes: Any) -> Settlement:
    """Return the settlement of a completed request with one attempt."""
    settlement = Settlement(
        request_id=request_id,
        settled_at_us=NOON_US + 500_000,
        outcome="completed",
        status=200,
        input_tokens=10,
        output_tokens=5,
        cached_input_tokens=2,
        has_exact_usage=True,
        queue_s=0.1,
        cold_start_s=0.0,
        gateway_ttft_s=0.2,
        itl_mean_s=0.01,
        duration_s=0.5,
        price_nanousd=100,
        error_code=None,
        attempts=(an_attempt(),),
    )
    return replace(settlement, **changes)


def a_transition(sequence: int = 1, **changes: Any) -> ReplicaTransition:
    """Return a replica's first transition, cold → starting."""
    transition = ReplicaTransition(
        replica_id="chat-00000001",
        sequence=sequence,
        at_us=NOON_US + sequence * 1_000_000,
        deployment="chat",
        tier="serverless",
        event='{"event": "launch"}',
        from_status="cold",
        to_status="starting",
        is_final=False,
        reason="a request waits",
        memory_bytes=2**20,
        cores=1.0,
        gpus=0,
    )
    return replace(transition, **changes)


def a_key(key_id: str = "key_1", **changes: Any) -> StoredKey:
    """Return a live key; its hash follows from its id."""
    key = StoredKey(
        key_id=key_id,
        name="laptop",
        tenant="default",
        sha256=key_id.encode().hex().rjust(64, "0"),
        hint="abcd",
        deployments=(),
        created_at_us=NOON_US,
        revoked_at_us=None,
    )
    return replace(key, **changes)
