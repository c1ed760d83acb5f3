"""Requests that go well, over a real server and a scripted engine: what the client gets and what the ledger keeps."""

from __future__ import annotations

import json

import pytest

from stoker.testing.gateway import CHAT_SURFACES, deployment_facts
from stoker.testing.upstream import ScriptedExchange, chat_answer, chat_chunk, chat_stream, usage_fields


async def test_a_chat_is_answered_priced_and_settled(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.send_json(chat_answer(prompt=100, completion=20, cached=40))

    async with open_house(engine) as house:
        answer = await house.client.chat(max_tokens=20)
        assert answer.status == 200
        assert answer.json() == chat_answer(prompt=100, completion=20, cached=40)
        assert answer.headers["x-stoker-tier"] == "serverless"
        assert answer.headers["x-stoker-served-by"] == "chat-0"
        assert answer.headers["x-stoker-cost-usd"] == "0.000104"  # 60 at $1, 40 cached at $0.1, 20 out at $2
        [row] = await house.settled()
        assert answer.headers["x-stoker-request-id"] == row.request_id
        assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (100, 40, 20)
        assert (row.outcome, row.status, row.price_nanousd, row.has_exact_usage) == ("completed", 200, 104_000, True)
        intent = house.ledger.intents[row.request_id]
        assert (intent.key_id, intent.deployment, intent.surface, intent.max_output_tokens) == (
            "local", "chat", "chat.completions", 20
        )  # fmt: skip


async def test_neither_client_headers_nor_control_fields_reach_the_engine(open_house):
    async with open_house() as house:
        await house.client.chat(
            id_slot=3, unknown={"kept": True}, headers={"X_Secret": "s", "Authorization": "Bearer k"}
        )
        [seen] = house.upstream.requests
        assert b"secret" not in seen.head.lower()
        assert b"authorization" not in seen.head.lower()
        assert seen.json()["unknown"] == {"kept": True}
        assert "id_slot" not in seen.json()


async def test_a_stream_is_copied_untouched_with_its_usage_hidden_and_recorded(open_house):
    async with open_house(chat_stream(["a", "b", "c"], prompt=1000, cached=600)) as house:
        answer = await house.client.chat(stream=True)
        assert answer.is_clean
        assert answer.events() == [
            chat_chunk("a"), chat_chunk("b"), chat_chunk("c"), chat_chunk(finish="stop"), "[DONE]"
        ]  # fmt: skip
        assert house.upstream.requests[0].json()["stream_options"] == {"include_usage": True}
        [row] = await house.settled()
        assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (1000, 600, 3)
        assert row.price_nanousd == 400 * 1000 + 600 * 100 + 3 * 2000
        assert row.gateway_ttft_s is not None


async def test_a_client_that_asks_for_usage_gets_it_with_the_cost(open_house):
    async with open_house(chat_stream(["a"], prompt=10)) as house:
        answer = await house.client.chat(stream=True, stream_options={"include_usage": True})
        usage_chunk = answer.events()[-2]
        assert usage_chunk["usage"] == usage_fields(10, 1)
        assert usage_chunk["x_stoker"]["cost_usd"] == 0.000012
        [row] = await house.settled()
        assert usage_chunk["x_stoker"]["request_id"] == row.request_id


async def test_events_split_anywhere_come_out_whole(open_house):
    events = b"".join(
        b"data: " + json.dumps(part).encode() + b"\n\n"
        for part in (chat_chunk("a"), chat_chunk("b"), {"choices": [], "usage": usage_fields(7, 2)})
    )

    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        data = events + b"data: [DONE]\n\n"
        for start in range(0, len(data), 7):
            await exchange.chunk(data[start : start + 7])
        await exchange.end_stream()

    async with open_house(engine) as house:
        answer = await house.client.chat(stream=True)
        assert answer.events() == [chat_chunk("a"), chat_chunk("b"), "[DONE]"]
        [row] = await house.settled()
        assert (row.input_tokens, row.output_tokens) == (7, 2)


async def test_tokens_are_counted_from_the_stream_when_the_engine_never_reports(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        for word in ("a", "b", "c"):
            await exchange.event(chat_chunk(word))
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with open_house(engine) as house:
        await house.client.chat(stream=True)
        [row] = await house.settled()
        assert row.output_tokens == 3
        assert not row.has_exact_usage
        assert row.price_nanousd


async def test_an_unpriced_deployment_has_no_cost_rather_than_a_cost_of_zero(open_house):
    async with open_house(facts=(deployment_facts("chat"),)) as house:
        answer = await house.client.chat()
        assert "x-stoker-cost-usd" not in answer.headers
        [row] = await house.settled()
        assert row.price_nanousd is None


@pytest.mark.parametrize("usage_first", [True, False])
async def test_a_large_embeddings_answer_is_streamed_with_its_usage_found(open_house, usage_first: bool):
    vector = [0.125] * 400_000
    usage = {"usage": {"prompt_tokens": 12, "total_tokens": 12}}
    document = {**usage, "data": vector} if usage_first else {"data": vector, **usage}

    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.send_json(document)

    facts = deployment_facts(
        "vectors",
        surfaces=frozenset({"embeddings"}),
        price={"input_usd_per_million": "1", "output_usd_per_million": "0"},
    )
    async with open_house(engine, facts=(facts,)) as house:
        answer = await house.client.post("/v1/embeddings", {"model": "vectors", "input": ["x"]})
        assert answer.is_clean
        assert answer.json() == document
        [row] = await house.settled()
        assert (row.input_tokens, row.output_tokens, row.price_nanousd) == (12, 0, 12_000)


async def test_infill_needs_no_model_name_where_one_deployment_offers_it(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.send_json({"content": "x", "timings": {"prompt_n": 5, "cache_n": 3, "predicted_n": 4}})

    facts = (deployment_facts("code", surfaces=frozenset({"infill"})), deployment_facts("chat"))
    async with open_house(engine, facts=facts) as house:
        answer = await house.client.post("/infill", {"input_prefix": "a", "input_suffix": "b"})
        assert answer.status == 200
        [row] = await house.settled()
        assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (8, 3, 4)


async def test_anthropic_streams_settle_from_both_of_their_usage_events(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        for name, document in (
            (
                "message_start",
                {"message": {"usage": {"input_tokens": 4, "cache_read_input_tokens": 6, "output_tokens": 0}}},
            ),
            ("content_block_delta", {"delta": {"text": "hi"}}),
            ("message_delta", {"usage": {"output_tokens": 9}}),
            ("message_stop", {}),
        ):
            await exchange.chunk(f"event: {name}\ndata: {json.dumps({'type': name, **document})}\n\n".encode())
        await exchange.end_stream()

    async with open_house(engine, facts=(deployment_facts("chat", surfaces=CHAT_SURFACES | {"messages"}),)) as house:
        answer = await house.client.post(
            "/v1/messages", {"model": "chat", "messages": [{"role": "user", "content": "x"}], "stream": True}
        )
        assert answer.is_clean
        assert answer.body.endswith(b'data: {"type": "message_stop"}\n\n')
        [row] = await house.settled()
        assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (10, 6, 9)


async def test_models_lists_what_the_key_may_use(open_house):
    async with open_house() as house:
        listed = (await house.client.get("/v1/models")).json()
        assert [model["id"] for model in listed["data"]] == ["chat"]
        assert (await house.client.get("/v1/models/chat")).json()["id"] == "chat"
        hidden = await house.client.get("/v1/models/chat-large")
        assert (hidden.status, hidden.error["code"]) == (404, "model_not_found")


async def test_health_ready_metrics_and_admin(open_house):
    async with open_house() as house:
        await house.client.chat()
        await house.client.chat("nobody")
        assert (await house.client.get("/health")).status == 200
        assert (await house.client.get("/ready")).status == 200
        house.app.drain()
        assert (await house.client.get("/ready")).json()["reason"] == "draining"
        text = (await house.client.get("/metrics")).body.decode()
        assert 'stoker_requests_total{deployment="chat",outcome="completed",tier="serverless"} 1.0' in text
        assert 'stoker_turned_away_total{code="model_not_found"} 1.0' in text
        assert "nobody" not in text
        assert (await house.client.post("/admin/deployments", {})).status == 401
        assert house.admin_paths == ["/admin/deployments"]


async def test_one_connection_carries_many_requests_and_so_does_the_one_to_the_engine(open_house):
    async with open_house() as house, house.client.connect() as (reader, writer):
        for _ in range(5):
            writer.write(house.client.chat_request())
            assert (await house.client.read(reader)).status == 200
        writer.write(house.client.chat_request() + house.client.chat_request(stream=True))  # pipelined
        assert (await house.client.read(reader)).status == 200
        assert (await house.client.read(reader)).events()[-1] == "[DONE]"
        assert house.upstream.num_connections == 1
        await house.settled(7)
