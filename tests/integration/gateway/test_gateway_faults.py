"""Faults on every side of the gateway: nothing hangs, nothing is lost, nothing broken ends cleanly."""

from __future__ import annotations

import asyncio
import json

import pytest

from stoker.fleet.ports import Endpoint
from stoker.testing.gateway import CountingEngine, FakeReplica
from stoker.testing.upstream import ScriptedExchange, answer_chat, chat_answer, chat_chunk, usage_fields

# ------------------------------------------------------------------------------------------------ the client


async def test_a_client_that_leaves_mid_stream_stops_the_engine_and_keeps_its_usage(open_house):
    left = asyncio.Event()

    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        for word in ("a", "b", "c"):
            await exchange.event(chat_chunk(word))
        await exchange.wait_closed()
        left.set()

    async with open_house(engine) as house:
        async with house.client.connect() as (reader, writer):
            writer.write(house.client.chat_request(stream=True))
            await reader.readuntil(b'"c"')
        async with asyncio.timeout(5):
            await left.wait()
        [row] = await house.settled()
        assert (row.outcome, row.output_tokens, row.has_exact_usage) == ("disconnected", 3, False)
        assert row.price_nanousd
        assert not house.leases.ends[0][1].is_replica_suspect


async def test_an_engine_that_never_ends_its_response_after_done_holds_nobody(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await exchange.event("[DONE]")
        await exchange.wait_closed()

    async with open_house(engine) as house, asyncio.timeout(10):
        answer = await house.client.chat(stream=True)
        assert answer.is_clean
        assert answer.events()[-1] == "[DONE]"
        [row] = await house.settled()
        assert row.outcome == "completed"


async def test_an_engine_that_counts_in_every_event_leaves_exact_usage_when_it_dies(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        for number in (1, 2):
            timings = {"cache_n": 4, "prompt_n": 6, "predicted_n": number}
            await exchange.event({**chat_chunk("a"), "timings": timings})
        exchange.abort()

    async with open_house(engine) as house:
        await house.client.chat(stream=True)
        [row] = await house.settled()
        assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (10, 4, 2)
        assert row.has_exact_usage


async def test_an_engine_that_can_count_what_it_cancelled_is_asked(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await exchange.wait_closed()

    counting = CountingEngine((50, 20, 7))
    async with open_house(engine, engine=counting) as house:
        async with house.client.connect() as (reader, writer):
            writer.write(house.client.chat_request(stream=True))
            await reader.readuntil(b'"a"')
        [row] = await house.settled()
        assert (row.input_tokens, row.cached_input_tokens, row.output_tokens) == (50, 20, 7)
        assert row.has_exact_usage
        assert b'"a"' in counting.asked_with[0]


async def test_a_client_that_leaves_before_the_first_byte_stops_the_engine(open_house):
    reached, left = asyncio.Event(), asyncio.Event()

    async def engine(exchange: ScriptedExchange) -> None:
        reached.set()
        await exchange.wait_closed()
        left.set()

    async with open_house(engine) as house:
        async with house.client.connect() as (_reader, writer):
            writer.write(house.client.chat_request())
            await reached.wait()
        async with asyncio.timeout(5):
            await left.wait()
        [row] = await house.settled()
        assert (row.outcome, row.output_tokens) == ("disconnected", None)


async def test_a_client_that_leaves_during_the_load_leaves_the_queue(open_house):
    async with open_house() as house:
        house.leases.is_closed = True
        async with house.client.connect() as (_reader, writer):
            writer.write(house.client.chat_request())
            await house.until(lambda: house.leases.num_waiting == 1)
        [row] = await house.settled()
        assert (row.outcome, row.attempts[0].replica_id) == ("disconnected", None)
        assert house.leases.num_waiting == 0


async def test_a_half_closed_client_is_taken_to_have_left(open_house):
    async with open_house() as house:
        house.leases.is_closed = True
        async with house.client.connect() as (_reader, writer):
            writer.write(house.client.chat_request())
            await house.until(lambda: house.leases.num_waiting == 1)
            writer.write_eof()
            [row] = await house.settled()
            assert row.outcome == "disconnected"


async def test_a_client_that_leaves_while_another_request_is_queued_behind_is_noticed(open_house):
    async with open_house() as house:
        house.leases.is_closed = True
        async with house.client.connect() as (_reader, writer):
            writer.write(house.client.chat_request() * 2)
            await house.until(lambda: house.leases.num_waiting == 1)
            transport = writer.transport
            transport.abort()
        # Reading is paused while a request is queued behind; the reset is seen all the same, or at the first write.
        house.leases.is_closed = False
        house.leases.wake()
        await house.settled(1)


async def test_half_a_request_and_an_end_leave_nothing(open_house):
    async with open_house() as house:
        async with house.client.connect() as (_reader, writer):
            writer.write(house.client.chat_request()[:-5])
            await writer.drain()
        await house.until(lambda: house.server.num_connections == 0)
        assert not house.ledger.intents


@pytest.mark.parametrize("sent", [b"", b"GET /health HT"])
async def test_slow_headers_are_cut_off(open_house, sent: bytes):
    async with open_house(header_timeout=0.1) as house, house.client.connect() as (reader, writer):
        writer.write(sent)
        async with asyncio.timeout(5):
            if sent:
                assert (await house.client.read(reader)).status == 408
            assert await reader.read() == b""


async def test_headers_that_drip_are_cut_off(open_house):
    async with open_house(header_timeout=0.2) as house, house.client.connect() as (reader, writer):

        async def drip() -> None:
            for byte in b"GET /health HTTP/1.1\r\nHost: localhost\r\nX-Slow: " + b"x" * 10_000:
                writer.write(bytes([byte]))
                await asyncio.sleep(0.01)

        dripping = asyncio.create_task(drip())
        async with asyncio.timeout(5):
            assert (await house.client.read(reader)).status == 408
        dripping.cancel()


async def test_a_body_that_drips_is_cut_off(open_house):
    async with open_house(body_timeout=0.2) as house, house.client.connect() as (reader, writer):
        writer.write(house.client.chat_request()[:-10])
        async with asyncio.timeout(5):
            answer = await house.client.read(reader)
        assert (answer.status, answer.error["code"]) == (408, "request_timeout")
        assert not house.ledger.intents


async def test_a_client_that_stops_reading_holds_the_engine_back_and_is_cut(open_house):
    num_sent = 0

    async def engine(exchange: ScriptedExchange) -> None:
        nonlocal num_sent
        await exchange.start_stream()
        while True:
            await exchange.event(chat_chunk("x" * 60_000))
            num_sent += 1

    async with open_house(engine, write_timeout_s=0.4) as house:
        async with house.client.connect() as (reader, writer):
            writer.write(house.client.chat_request(stream=True))
            await reader.readuntil(b'"x')
            transport = writer.transport
            transport.pause_reading()
            [row] = await house.settled()
        assert row.outcome == "disconnected"
        assert num_sent < 1000  # back-pressure reached the engine: socket buffers only, not an endless queue


# ------------------------------------------------------------------------------------------------ the engine


async def test_an_engine_killed_mid_stream_ends_in_an_error_event_and_no_clean_end(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await exchange.chunk(b'data: {"half')
        exchange.abort()

    async with open_house(engine) as house:
        answer = await house.client.chat(stream=True)
        assert not answer.is_clean
        first, error = answer.events()
        assert first == chat_chunk("a")
        assert (error["error"]["code"], error["error"]["source"]) == ("engine_failed", "engine")
        assert b"[DONE]" not in answer.body
        [row] = await house.settled()
        assert (row.outcome, row.output_tokens, len(row.attempts)) == ("engine_error", 1, 1)
        assert house.leases.ends[0][1].is_replica_suspect


async def test_an_engine_that_dies_before_the_first_byte_is_replaced_by_another(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        if exchange.number == 1:
            exchange.abort()
        elif exchange.number == 2:
            await exchange.send(b"HTTP/1.1 500 Oh\r\nContent-Length: 0\r\n\r\n")
        else:
            await answer_chat(exchange)

    async with open_house(engine) as house:
        answer = await house.client.chat(stream=True)
        assert answer.is_clean
        assert answer.headers["x-stoker-served-by"] == "chat-2"
        [row] = await house.settled()
        assert [(a.number, a.replica_id, a.outcome) for a in row.attempts] == [
            (1, "chat-0", "engine_error"), (2, "chat-1", "engine_error"), (3, "chat-2", "completed")
        ]  # fmt: skip
        assert house.leases.asks[2].excluded_replicas == {"chat-0", "chat-1"}
        assert [end.is_replica_suspect for _, end in house.leases.ends] == [True, True, False]


async def test_a_stream_that_dies_between_status_and_first_event_is_retried(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        if exchange.number == 1:
            await exchange.start_stream()
            exchange.abort()
        else:
            await answer_chat(exchange)

    async with open_house(engine) as house:
        answer = await house.client.chat(stream=True)
        assert answer.is_clean
        assert answer.events()[-1] == "[DONE]"
        await house.settled()


async def test_a_truncated_whole_answer_never_reaches_the_client(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.send(b'HTTP/1.1 200 OK\r\nContent-Length: 500\r\n\r\n{"choices": [')
        exchange.writer.close()

    async with open_house(engine) as house:
        answer = await house.client.chat()
        assert (answer.status, answer.error["code"], answer.error["source"]) == (502, "engine_failed", "engine")
        [row] = await house.settled()
        assert (row.outcome, len(row.attempts)) == ("engine_error", 3)


async def test_retries_are_bounded_and_the_last_failure_is_told(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        exchange.abort()

    async with open_house(engine, num_replicas=9) as house:
        answer = await house.client.chat()
        assert answer.status == 502
        assert answer.headers["x-stoker-error-source"] == "engine"
        assert len(house.upstream.requests) == 3
        await house.settled()


async def test_a_replica_that_cannot_be_reached_is_passed_over(open_house):
    async with open_house() as house:
        house.leases._replicas["chat"].insert(0, FakeReplica("gone", Endpoint(socket_path="/tmp/no-such.sock")))
        answer = await house.client.chat()
        assert answer.status == 200
        [row] = await house.settled()
        assert [a.replica_id for a in row.attempts] == ["gone", "chat-0"]


@pytest.mark.parametrize(
    ("status", "body", "message", "outcome"),
    [
        (400, {"error": {"message": "too long", "code": 400, "n_ctx": 2048}}, "too long", "client_error"),
        (500, {"error": {"message": "boom"}}, "boom", "engine_error"),
        (422, {"object": "error", "message": "bad field"}, "bad field", "client_error"),
        (404, {"detail": "Not Found"}, "Not Found", "client_error"),
    ],
)
async def test_the_engines_own_errors_pass_with_their_words_and_status(open_house, status, body, message, outcome):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.send_json(body, status=status)

    async with open_house(engine) as house:
        answer = await house.client.chat()
        assert (answer.status, answer.error["message"], answer.error["source"]) == (status, message, "engine")
        assert answer.headers["x-stoker-error-source"] == "engine"
        assert answer.error.get("n_ctx") == body.get("error", {}).get("n_ctx")
        [row] = await house.settled()
        assert (row.outcome, row.status, len(row.attempts)) == (outcome, status, 1)


async def test_an_error_event_of_the_engine_passes_and_is_recorded_as_one(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await exchange.event({"error": {"message": "context full"}})
        await exchange.end_stream()

    async with open_house(engine) as house:
        answer = await house.client.chat(stream=True)
        assert answer.events()[-1]["error"]["message"] == "context full"
        [row] = await house.settled()
        assert row.outcome == "engine_error"


async def test_a_deadline_that_passes_mid_stream_ends_it_with_an_error_event(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await exchange.wait_closed()

    async with open_house(engine, request_timeout=0.2) as house:
        answer = await house.client.chat(stream=True)
        assert not answer.is_clean
        assert answer.events()[-1]["error"]["code"] == "deadline_exceeded"
        [row] = await house.settled()
        assert (row.outcome, row.output_tokens) == ("timed_out", 1)


# ------------------------------------------------------------------------------------------------ the ledger


@pytest.mark.parametrize("is_stream", [False, True])
async def test_when_the_intent_cannot_be_stored_not_one_byte_of_the_answer_leaves(open_house, is_stream: bool):
    async with open_house() as house:
        house.ledger.is_failing = True
        answer = await house.client.chat(stream=is_stream)
        assert (answer.status, answer.error["code"]) == (503, "ledger_unavailable")
        assert answer.headers["retry-after"] == "1"
        assert house.leases.num_held == 0
        assert not house.ledger.settlements


async def test_when_the_settlement_cannot_be_stored_a_stream_is_cut_before_its_end(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await house.until(lambda: house.ledger.intents)
        house.ledger.is_failing = True
        await exchange.event({"choices": [], "usage": usage_fields(1, 1)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with open_house(engine) as house:
        answer = await house.client.chat(stream=True)
        assert not answer.is_clean
        assert b"[DONE]" not in answer.body
        assert answer.events()[-1]["error"]["code"] == "ledger_unavailable"
        assert house.leases.num_held == 0


async def test_when_the_settlement_cannot_be_stored_a_whole_answer_is_withheld(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await house.until(lambda: house.ledger.intents)
        house.ledger.is_failing = True
        await exchange.send_json(chat_answer())

    async with open_house(engine) as house:
        answer = await house.client.chat()
        assert (answer.status, answer.error["code"]) == (503, "ledger_unavailable")


async def test_the_first_byte_waits_for_the_intent_and_the_last_for_the_settlement(open_house):
    async with open_house() as house, house.client.connect() as (reader, writer):
        house.ledger.is_held = True
        writer.write(house.client.chat_request(stream=True))
        first = asyncio.create_task(reader.readuntil(b"\r\n\r\n"))
        await house.until(lambda: house.upstream.requests)
        await asyncio.sleep(0.1)
        assert not first.done()
        house.ledger.release()
        await first


async def test_done_is_held_until_the_settlement_is_durable(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await house.until(lambda: house.ledger.intents)
        house.ledger.is_held = True
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with open_house(engine) as house, house.client.connect() as (reader, writer):
        writer.write(house.client.chat_request(stream=True))
        await reader.readuntil(b'"a"')
        rest = asyncio.create_task(reader.readuntil(b"[DONE]"))
        await house.until(lambda: house.leases.num_held == 0)  # the slot does not wait for the disk
        await asyncio.sleep(0.05)
        assert not rest.done()
        house.ledger.release()
        await rest
        await house.settled()


# ------------------------------------------------------------------------------------------------ the server


async def test_a_graceful_stop_lets_a_stream_end_and_accepts_nobody_else(open_house):
    going = asyncio.Event()

    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await going.wait()
        await exchange.event("[DONE]")
        await exchange.end_stream()

    async with open_house(engine) as house, house.client.connect() as (reader, writer):
        writer.write(house.client.chat_request(stream=True))
        answered = asyncio.create_task(house.client.read(reader))
        await house.until(lambda: house.ledger.intents)
        stopping = asyncio.create_task(house.server.stop())
        await asyncio.sleep(0.05)
        with pytest.raises(ConnectionError):
            await house.client.get("/health")
        going.set()
        answer = await answered
        assert answer.is_clean
        assert answer.events()[-1] == "[DONE]"
        await stopping
        await house.settled()


async def test_a_request_that_outlives_the_drain_is_cut_and_settled_as_interrupted(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        await exchange.event(chat_chunk("a"))
        await exchange.wait_closed()

    async with open_house(engine, drain_timeout=0.1) as house, house.client.connect() as (reader, writer):
        writer.write(house.client.chat_request(stream=True))
        answered = asyncio.create_task(house.client.read(reader))
        await house.until(lambda: house.ledger.intents)
        await house.server.stop()
        assert not (await answered).is_clean
        [row] = await house.settled()
        assert (row.outcome, row.output_tokens) == ("interrupted", 1)


async def test_a_storm_of_mixed_endings_leaves_no_slot_and_no_intent_behind(open_house):
    async def engine(exchange: ScriptedExchange) -> None:
        kind = exchange.number % 5
        if kind == 0:
            exchange.abort()
        elif kind == 1:
            await exchange.send_json({"error": {"message": "no"}}, status=400)
        else:
            await answer_chat(exchange)

    async def one(house, number: int) -> None:
        async with house.client.connect() as (reader, writer):
            writer.write(house.client.chat_request(stream=number % 2 == 0))
            if number % 4:
                await house.client.read(reader)

    async with open_house(engine) as house:
        await asyncio.gather(*(one(house, number) for number in range(120)))
        await house.until(lambda: house.server.num_connections == 0)
        await house.settled(len(house.ledger.intents))
        assert json.dumps(house.metrics.of("chat", "serverless").num_in_flight) == "0"
