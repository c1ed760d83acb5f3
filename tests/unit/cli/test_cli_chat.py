"""`stoker chat`: words as they come, and what each answer took."""

from __future__ import annotations

import json
from collections.abc import Callable

import pytest

from tests.unit.cli.conftest import Server

PATH = "/v1/chat/completions"
HEADERS = {
    "content-type": "text/event-stream",
    "x-stoker-tier": "serverless",
    "x-stoker-cold-start-ms": "414",
    "x-stoker-queue-ms": "420",
    "x-stoker-served-by": "chat-1",
}
USAGE = {"prompt_tokens": 7, "completion_tokens": 2}


def words(text: str) -> dict[str, object]:
    return {"choices": [{"delta": {"content": text}}]}


@pytest.fixture
def talking(server: Server, sse: Callable[..., bytes]) -> Server:
    last = {"choices": [], "usage": USAGE, "x_stoker": {"cost_usd": 0.00033}}
    server.v1[PATH] = (200, HEADERS, sse(words("Hel"), words("lo"), last))
    return server


def test_one_question(talking: Server) -> None:
    result = talking.run("chat", "chat", "-m", "hi", "--system", "be brief", "--max-tokens", "9", "--temperature", "0")
    assert result.stdout == "Hello\n"
    for part in ("first token after", "cold start 414 ms", "serverless", "7 in, 2 out", "$0.00033"):
        assert part in result.stderr
    sent = json.loads(talking.asked[-1][3])
    assert [message["role"] for message in sent["messages"]] == ["system", "user"]
    assert (sent["max_tokens"], sent["temperature"], sent["stream"]) == (9, 0, True)
    assert "Authorization" not in talking.asked[-1][2]


def test_json_has_what_it_took(talking: Server) -> None:
    told = talking.json("chat", "chat", "-m", "hi")
    assert told["ttft_s"] > 0
    asked = ("text", "tier", "cold_start_ms", "input_tokens", "output_tokens", "cost_usd")
    assert {key: told[key] for key in asked} == {
        "text": "Hello", "tier": "serverless", "cold_start_ms": 414.0, "input_tokens": 7, "output_tokens": 2,
        "cost_usd": 0.00033,
    }  # fmt: skip


def test_what_nobody_priced_is_said_so(server: Server, sse: Callable[..., bytes]) -> None:
    server.v1[PATH] = (200, {}, sse(words("x"), {"choices": [], "usage": USAGE}))
    assert "unpriced" in server.run("chat", "chat", "-m", "hi").stderr
    assert server.json("chat", "chat", "-m", "hi")["cost_usd"] is None


def test_a_conversation_keeps_what_was_said_until_its_end(talking: Server) -> None:
    result = talking.run("chat", "chat", input="first\n\nsecond\n")
    assert result.exit_code == 0
    assert result.stdout == "Hello\nHello\n"
    messages = json.loads(talking.asked[-1][3])["messages"]
    assert [message["content"] for message in messages] == ["first", "Hello", "second"]


def test_a_failed_turn_does_not_end_the_conversation(server: Server) -> None:
    error = {"error": {"message": "full", "code": "capacity_exhausted"}}
    server.v1[PATH] = (503, {}, json.dumps(error).encode())
    result = server.run("chat", "chat", input="first\nsecond\n")
    assert result.exit_code == 0
    assert result.stderr.count("error: full") == 2
    assert len(json.loads(server.asked[-1][3])["messages"]) == 1


@pytest.mark.parametrize("kind", ["cut off", "an error event"])
def test_a_broken_stream_is_a_failure(server: Server, sse: Callable[..., bytes], kind: str) -> None:
    error = {"error": {"message": "the engine died"}}
    body = sse(words("Hel"), done=False) if kind == "cut off" else sse(words("Hel"), error, done=False)
    server.v1[PATH] = (200, HEADERS, body)
    result = server.run("chat", "chat", "-m", "hi")
    assert result.exit_code == 1
    assert "cut off" in result.stderr or "the engine died" in result.stderr


def test_the_key_comes_from_the_environment(talking: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STOKER_API_KEY", "sk-mine")
    talking.run("chat", "chat", "-m", "hi")
    assert talking.asked[-1][2]["Authorization"] == "Bearer sk-mine"


def test_the_only_deployment_needs_no_name_and_one_of_several_does(talking: Server) -> None:
    talking.v1["/v1/models"] = (200, {}, b'{"data": [{"id": "chat"}]}')
    assert talking.run("chat", "-m", "hi").exit_code == 0
    talking.v1["/v1/models"] = (200, {}, b'{"data": [{"id": "chat"}, {"id": "other"}]}')
    result = talking.run("chat", "-m", "hi")
    assert result.exit_code == 2
    assert "chat, other" in result.stderr


def test_json_needs_one_question(server: Server) -> None:
    assert server.run("chat", "chat", "--json").exit_code == 2
