"""Requests whose client left: what the adapter counts equals what the engine counted, to the token."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from stoker.fleet.ports import SlotUse, Surface
from tests.integration.engines.conftest import Replica, running
from tests.integration.engines.test_llama_cpp_server import TEXT, body_of

pytestmark = pytest.mark.timeout(240)


async def _leave(
    replica: Replica,
    surface: Surface,
    body: dict[str, Any],
    *,
    num_events: int = 0,
    after_s: float = 0.0,
    slot: int = 0,
    may_reuse: bool = False,
) -> tuple[tuple[int, int, int] | None, tuple[int, ...]]:
    """Send, read some events, wait, close; return what the adapter counted and what the engine did."""
    before = await replica.counters()
    sent = replica.prepared(surface, body, slot=slot, may_reuse=may_reuse)
    last_event = b""
    use = SlotUse(slot, may_reuse, "salt")
    async with replica.sending(surface, sent) as (reader, close):
        while num_events:
            line = await reader.readline()
            assert line, "the stream ended early"
            if line.startswith(b"data: "):
                last_event, num_events = line, num_events - 1
        await asyncio.sleep(after_s)
        counted = await replica.engine.usage_after_cancel(replica.endpoint, use, surface, sent, last_event, close)
    after = await replica.counters()
    return counted, tuple(b - a for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize("num_events", [1, 2, 7])
@pytest.mark.parametrize("surface", ["chat.completions", "completions"])
async def test_a_stream_that_was_cut(replica: Replica, surface: Surface, num_events: int) -> None:
    body = {**body_of(surface, tokens=600), "stream": True, "ignore_eos": True}
    counted, engine = await _leave(replica, surface, body, num_events=num_events)
    assert counted == engine
    assert 0 < engine[2] < 600


@pytest.mark.parametrize("surface", ["chat.completions", "completions", "responses"])
async def test_an_answer_in_one_piece_that_nobody_waited_for(replica: Replica, surface: Surface) -> None:
    body = {**body_of(surface, tokens=600), "ignore_eos": True}
    counted, engine = await _leave(replica, surface, body, after_s=1.5)
    assert counted == engine
    assert 0 < engine[2] < 600, "asking must not keep the request alive"


@pytest.mark.parametrize("is_stream", [True, False])
async def test_a_client_that_left_within_the_prompt(is_stream: bool) -> None:
    async with running(context_tokens=4096, args={"n_batch": 128, "n_ubatch": 128}) as replica:
        text = TEXT * 150
        body = {**body_of("chat.completions", text, tokens=50), "stream": is_stream}
        counted, engine = await _leave(replica, "chat.completions", body, after_s=0.2)
        assert counted == engine
        assert engine[2] == 0
        assert engine[0] % 128 == 0


async def test_a_reused_prefix_counts_as_cached(replica: Replica) -> None:
    await replica.ask("chat.completions", replica.prepared("chat.completions", body_of("chat.completions")))
    body = {**body_of("chat.completions", tokens=600), "ignore_eos": True}
    counted, engine = await _leave(replica, "chat.completions", body, after_s=0.5, may_reuse=True)
    assert counted == engine
    assert engine[1] > 0


async def test_a_request_that_never_came_to_its_slot_costs_nothing(replica: Replica) -> None:
    await replica.ask("chat.completions", replica.prepared("chat.completions", body_of("chat.completions")))
    sent = replica.prepared("chat.completions", body_of("chat.completions"))
    use = SlotUse(0, False, "salt")
    closed: list[bool] = []
    counted = await replica.engine.usage_after_cancel(
        replica.endpoint, use, "chat.completions", sent, b"", lambda: closed.append(True)
    )
    assert counted == (0, 0, 0)
    assert closed


async def test_a_cut_stream_beside_another_that_goes_on(replica: Replica) -> None:
    other = replica.prepared(
        "chat.completions", {**body_of("chat.completions", tokens=400), "stream": True, "ignore_eos": True}, slot=1
    )
    async with replica.sending("chat.completions", other) as (reader, _):
        await reader.readuntil(b'"content":"')
        sent = replica.prepared(
            "chat.completions", {**body_of("chat.completions", tokens=600), "stream": True, "ignore_eos": True}
        )
        async with replica.sending("chat.completions", sent) as (cut, close):
            await cut.readuntil(b'"content":"')
            counted = await replica.engine.usage_after_cancel(
                replica.endpoint, SlotUse(0, False, "salt"), "chat.completions", sent, b"data: ", close
            )
        assert counted is not None
        assert 0 < counted[2] < 600
        assert (await replica.slots())[1]["is_processing"], "the other went on"
