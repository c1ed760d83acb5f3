"""Streams cut anywhere: what leaves, what is held, what is counted."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.gateway.openai.surfaces import SHAPES
from stoker.gateway.openai.usage import Usage, find_usage, find_usage_in_body
from stoker.gateway.streaming import MAX_EVENT_BYTES, EventTap
from stoker.testing.upstream import chat_chunk, usage_fields


def event(document: object) -> bytes:
    text = document if isinstance(document, str) else json.dumps(document, separators=(",", ":"))
    return f"data: {text}\n\n".encode()


WORDS = [event(chat_chunk(word)) for word in ("a", "[DONE]", 'say "usage":{"prompt_tokens":9}', "\n\n", "ä")]
USAGE = event({"id": "c", "choices": [], "usage": usage_fields(100, 5, 40)})
DONE = event("[DONE]")
STREAM = b"".join(WORDS) + b": ping\n\n" + USAGE + DONE


def cut(data: bytes, at: list[int]) -> list[bytes]:
    edges = [0, *sorted({place % (len(data) + 1) for place in at}), len(data)]
    return [data[a:b] for a, b in itertools.pairwise(edges)]


def run(tap: EventTap, pieces: list[bytes]) -> bytes:
    left = b"".join(tap.feed(piece) for piece in pieces)
    tap.finish()
    return left


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_however_a_stream_is_cut_the_client_gets_it_whole_but_for_the_hidden_usage(at: list[int]) -> None:
    tap = EventTap(SHAPES["chat.completions"], hides_usage=True)
    left = run(tap, cut(STREAM, at))
    assert left == b"".join(WORDS) + b": ping\n\n"
    assert tap.held == DONE
    assert tap.is_final
    assert tap.usage == Usage(100, 40, 5)
    assert tap.num_events == pytest.approx(len(WORDS), abs=1)  # a ping within a whole piece counts for an event


@given(st.lists(st.integers(0, 10_000), max_size=40))
def test_a_client_that_asked_gets_the_usage_with_our_extension(at: list[int]) -> None:
    tap = EventTap(
        SHAPES["chat.completions"], hides_usage=False, extension=lambda usage: b'"x":%d' % usage.output_tokens
    )
    left = run(tap, cut(STREAM, at))
    assert left == b"".join(WORDS) + b": ping\n\n" + USAGE[:-3] + b',"x":5}\n\n'


@given(st.lists(st.integers(0, 10_000), max_size=20))
def test_carriage_returns_are_kept(at: list[int]) -> None:
    stream = STREAM.replace(b"\n", b"\r\n")
    tap = EventTap(SHAPES["chat.completions"], hides_usage=False)
    assert run(tap, cut(stream, at)) + tap.held == stream
    assert tap.usage == Usage(100, 40, 5)


def test_usage_beside_output_is_taken_out_and_the_output_kept() -> None:
    chunk = {**chat_chunk("a"), "usage": usage_fields(3, 1)}
    tap = EventTap(SHAPES["chat.completions"], hides_usage=True)
    assert json.loads(tap.feed(event(chunk))[6:]) == chat_chunk("a")
    assert tap.usage == Usage(3, 0, 1)


def test_a_null_usage_is_no_usage() -> None:
    tap = EventTap(SHAPES["chat.completions"], hides_usage=True)
    piece = event({**chat_chunk("a"), "usage": None})
    assert tap.feed(piece) == piece
    assert tap.usage is None


def test_all_that_follows_the_final_event_is_held() -> None:
    tap = EventTap(SHAPES["chat.completions"], hides_usage=True)
    assert tap.feed(DONE + WORDS[0]) == b""
    assert tap.feed(WORDS[0]) == b""
    assert tap.held == DONE + WORDS[0] + WORDS[0]


def test_an_event_without_end_is_passed_on_in_bounded_memory() -> None:
    tap = EventTap(SHAPES["chat.completions"], hides_usage=True)
    piece = b"x" * 65536
    total = sum(len(tap.feed(piece)) for _ in range(64))
    assert len(piece) * 64 - total <= MAX_EVENT_BYTES + len(piece)


def test_the_last_event_of_a_piece_is_the_one_an_engine_is_asked_with() -> None:
    tap = EventTap(SHAPES["chat.completions"], hides_usage=True)
    assert tap.last_event == b""
    tap.feed(event({"n": 1}) + event({"n": 2}))
    assert tap.last_event == b'data: {"n":2}'


@pytest.mark.parametrize(
    ("surface", "final"),
    [
        ("chat.completions", b"data: [DONE]\n\n"),
        ("completions", b"data:[DONE]\n\n"),
        (
            "responses",
            b'event: response.completed\ndata: {"response":{"usage":{"input_tokens":3,"output_tokens":2}}}\n\n',
        ),
        ("messages", b'event: message_stop\ndata: {"type":"message_stop"}\n\n'),
        ("infill", b'data: {"content":"","stop":true,"timings":{"prompt_n":3,"predicted_n":2}}\n\n'),
    ],
)
def test_each_surface_has_its_own_last_event(surface: str, final: bytes) -> None:
    tap = EventTap(SHAPES[surface], hides_usage=True)  # type: ignore[index]
    other = b'event: response.created\ndata: {"content":"message_stop [DONE]","stop":false}\n\n'
    assert tap.feed(other + final) == other
    assert tap.held == final
    if surface in {"responses", "infill"}:
        assert tap.usage == Usage(3, 0, 2)


def test_an_engines_error_event_is_noticed() -> None:
    for error in (b'data: {"error":{"message":"no"}}\n\n', b"event: error\ndata: {}\n\n"):
        tap = EventTap(SHAPES["messages"], hides_usage=True)
        assert tap.feed(error) == error
        assert tap.has_error


@pytest.mark.parametrize(
    ("body", "usage"),
    [
        pytest.param({"usage": usage_fields(10, 2, 4)}, Usage(10, 4, 2), id="OpenAI"),
        pytest.param({"usage": {"prompt_tokens": 7, "total_tokens": 7}}, Usage(7, 0, 0), id="embeddings"),
        pytest.param(
            {"usage": {"input_tokens": 9, "input_tokens_details": {"cached_tokens": 5}, "output_tokens": 1}},
            Usage(9, 5, 1),
            id="responses: cached within",
        ),
        pytest.param(
            {"usage": {"input_tokens": 4, "cache_read_input_tokens": 5, "output_tokens": 1}},
            Usage(9, 5, 1),
            id="Anthropic: cached beside",
        ),
        pytest.param(
            {"timings": {"prompt_n": 3, "cache_n": 2, "predicted_n": 6}}, Usage(5, 2, 6), id="llama.cpp infill"
        ),
        pytest.param({"usage": {"prompt_tokens": -1}}, None, id="a negative count"),
        pytest.param({"usage": {"prompt_tokens": True}}, None, id="a boolean"),
        pytest.param({"usage": {"prompt_tokens": 5, "prompt_tokens_details": None}}, Usage(5, 0, 0), id="no details"),
        pytest.param({"usage": None}, None, id="null"),
        pytest.param({"choices": [{"text": '"usage":{"prompt_tokens":9}'}]}, None, id="only talk of it"),
        pytest.param(
            {"content": [{"input": {"usage": {"prompt_tokens": 1}}}], "usage": usage_fields(10, 2)},
            Usage(10, 0, 2),
            id="a tool's argument of the same name",
        ),
        pytest.param(
            {"usage": {"prompt_tokens": 2, "prompt_tokens_details": {"cached_tokens": 99}}},
            Usage(2, 2, 0),
            id="more cached than read",
        ),
    ],
)
def test_usage_is_read_as_each_engine_writes_it(body: object, usage: Usage | None) -> None:
    written = json.dumps(body).encode()
    assert find_usage(written) == usage
    assert find_usage_in_body(written) == usage
    assert find_usage_in_body(written + b" " * 10_000) == usage


@given(st.binary(max_size=200))
def test_no_bytes_break_the_search(noise: bytes) -> None:
    find_usage(b'{"usage":' + noise)
    find_usage_in_body(noise)
