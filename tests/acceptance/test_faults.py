"""Bad requests, hostile clients and clients that leave: a clear error, nothing lost, nothing let through."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from stoker.testing.server import RunningStoker
from tests.acceptance.fakes import config, deployment, engine_saw, exchange, settlements, wait_until

CHAT = "/v1/chat/completions"
GOOD: dict[str, Any] = {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 2}
CONFIG = config(
    deployment("chat"),
    server="header_timeout: 500ms, body_timeout: 1s, max_body: 64KiB",
)


@pytest.fixture(scope="module")
def server() -> Iterator[RunningStoker]:
    with RunningStoker(CONFIG) as running:
        assert running.chat("chat", max_tokens=1).status == 200
        yield running


@pytest.fixture(autouse=True)
def _still_serves(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did to the shared server, the next client notices nothing."""
    yield
    if "server" in request.fixturenames:
        running: RunningStoker = request.getfixturevalue("server")
        assert running.chat("chat", max_tokens=1).status == 200


def raw(body: bytes, *, length: int | None = None) -> bytes:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nConnection: close\r\n"
    return f"{head}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body


# -- what is said ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("body", "status", "code", "words"),
    [
        (b'{"model": "chat", ', 400, "bad_request", "not valid JSON"),
        (b"", 400, "bad_request", "not valid JSON"),
        (b"\xff\xfe{}", 400, "bad_request", "not valid JSON"),
        (b"[" * 5000, 400, "bad_request", "not valid JSON"),
        (b"[1, 2]", 400, "bad_request", "must be a JSON object, not a list"),
        (b"{}", 400, "bad_request", "model is missing"),
        ({**GOOD, "model": 7}, 400, "bad_request", "model must be a string, not a number"),
        ({**GOOD, "messages": "Hi"}, 400, "bad_request", "messages must be a list"),
        ({**GOOD, "messages": []}, 400, "bad_request", "at least one message"),
        ({**GOOD, "messages": ["Hi"]}, 400, "bad_request", "messages[0] must be an object"),
        ({**GOOD, "messages": [{"role": 1, "content": "Hi"}]}, 400, "bad_request", "messages[0].role"),
        ({**GOOD, "stream": "yes"}, 400, "bad_request", "stream must be true or false"),
        ({**GOOD, "max_tokens": "many"}, 400, "bad_request", "max_tokens must be an integer"),
        ({**GOOD, "stream_options": []}, 400, "bad_request", "stream_options must be an object"),
        ({**GOOD, "model": "chta"}, 404, "model_not_found", "did you mean chat"),
        ({**GOOD, "model": "\x1b[31m" + "x" * 4000}, 404, "model_not_found", "does not exist here"),
        (b'{"model": "chat", "pad": "' + b"x" * 70_000 + b'"}', 413, "body_too_large", "65536 bytes"),
    ],
    ids=[
        "cut off", "empty", "not UTF-8", "nested too deep", "a list", "nothing in it", "model is a number",
        "messages are a text", "no message", "message is a text", "role is a number", "stream is a text",
        "limit is a text", "options are a list", "a model nearly right", "a hostile model name", "too large",
    ],
)  # fmt: skip
def test_bad_input_is_named_in_openais_envelope(
    server: RunningStoker, body: Any, status: int, code: str, words: str
) -> None:
    answer = server.request("POST", CHAT, body)
    assert answer.status == status
    error = answer.json()["error"]
    assert error["code"] == code
    assert words in error["message"]
    assert error["source"] == "stoker"
    assert answer.headers["x-stoker-request-id"].startswith("req_")


def test_a_body_that_never_says_how_large_it_is_is_cut_at_the_limit(server: RunningStoker) -> None:
    head = f"POST {CHAT} HTTP/1.1\r\nHost: 127.0.0.1\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
    chunk = b"4000\r\n" + b"x" * 0x4000 + b"\r\n"
    answer = exchange(server, head, *[chunk] * 5)
    assert answer.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in answer


@pytest.mark.parametrize("garbage", [b"\x16\x03\x01\x02\x00\x01", b"GET\r\n\r\n", b"NONSENSE " * 20 + b"\r\n\r\n"])
def test_what_is_not_http_is_refused_and_the_connection_closed(server: RunningStoker, garbage: bytes) -> None:
    answer = exchange(server, garbage, closes_half=False)
    assert answer.startswith(b"HTTP/1.1 400 ") or answer == b""


def test_headers_beyond_the_limit_are_refused(server: RunningStoker) -> None:
    answer = exchange(server, b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: " + b"y" * 80_000 + b"\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 431 ")


# -- how it is sent --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("first", "drip"),
    [(b"POST ", b"a"), (b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX: ", b"y"), (raw(b"{", length=5000), b" ")],
    ids=["request line", "headers", "body"],
)
def test_a_slow_loris_is_shown_out_while_others_are_served(server: RunningStoker, first: bytes, drip: bytes) -> None:
    with socket.create_connection(("127.0.0.1", server.port), timeout=20) as client:
        client.sendall(first)
        client.setblocking(False)
        answer = b""
        deadline = time.monotonic() + 20
        while True:
            assert time.monotonic() < deadline, "it is still connected"
            try:
                client.send(drip)
                if not (piece := client.recv(65536)):
                    break
                answer += piece
            except BlockingIOError:
                time.sleep(0.1)
            except OSError:
                break
        assert server.chat("chat", max_tokens=1).status == 200
    assert answer.startswith(b"HTTP/1.1 408 ")


def test_a_client_that_says_nothing_holds_no_connection(server: RunningStoker) -> None:
    assert exchange(server)[:13] in {b"", b"HTTP/1.1 408 "}


def test_a_body_just_read_with_its_headers_does_not_count_as_headers(server: RunningStoker) -> None:
    content = [{"type": "text", "text": "Hi"}, {"type": "image_url", "image_url": {"url": "data:," + "x" * 65_300}}]
    body = json.dumps({**GOOD, "messages": [{"role": "user", "content": content}]}).encode()
    assert len(raw(body)) > 65536 > len(body)
    assert exchange(server, raw(body)).startswith(b"HTTP/1.1 200 ")


@pytest.mark.parametrize("is_stream", [False, True])
def test_a_client_that_closed_its_sending_half_is_taken_to_have_left(server: RunningStoker, is_stream: bool) -> None:
    num_before = len(settlements(server.state_dir))
    body = json.dumps({**GOOD, "stream": is_stream, "max_tokens": 10**6}).encode()
    assert b"[DONE]" not in exchange(server, raw(body), closes_half=True)
    wait_until(lambda: settlements(server.state_dir)[num_before:] == [("chat", "disconnected")])
    wait_until(lambda: [r["ongoing"] for r in server.replicas()] == [0])


def test_a_body_cut_off_by_a_half_close_ends_there(server: RunningStoker) -> None:
    answer = exchange(server, raw(b'{"model": "chat"', length=5000), closes_half=True)
    assert b"200 OK" not in answer


# -- who leaves ------------------------------------------------------------------------------------


def test_a_client_that_leaves_mid_stream_gives_its_slot_back_and_is_settled() -> None:
    with RunningStoker(config(deployment("slow", "--token-delay", "0.05"))) as stoker:
        connection = http.client.HTTPConnection("127.0.0.1", stoker.port, timeout=20)
        body = json.dumps({**GOOD, "model": "slow", "stream": True, "max_tokens": 5000})
        connection.request("POST", CHAT, body, {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert b"data:" in answer.read1(4096)
        assert [r["ongoing"] for r in stoker.replicas()] == [1]
        answer.close()
        connection.close()
        wait_until(lambda: settlements(stoker.state_dir) == [("slow", "disconnected")])
        wait_until(lambda: [r["ongoing"] for r in stoker.replicas()] == [0])
        assert stoker.chat("slow", max_tokens=2).status == 200  # its only slot is free


def test_a_client_that_leaves_mid_load_does_not_stop_the_load() -> None:
    with RunningStoker(config(deployment("slow", "--start-delay", "1.5"))) as stoker:
        with socket.create_connection(("127.0.0.1", stoker.port)) as client:
            client.sendall(raw(json.dumps({**GOOD, "model": "slow"}).encode()))
            wait_until(lambda: [r["status"] for r in stoker.replicas()] == ["starting"])
            (loading,) = stoker.replicas()
        wait_until(lambda: settlements(stoker.state_dir) == [("slow", "disconnected")])
        wait_until(lambda: [r["status"] for r in stoker.replicas()] == ["ready"])
        (ready,) = stoker.replicas()
        assert ready["replica_id"] == loading["replica_id"]
        assert ready["ongoing"] == 0
        answer = stoker.chat("slow", max_tokens=2)
        assert answer.status == 200
        assert float(answer.headers["x-stoker-cold-start-ms"]) == 0


# -- who may, and what gets through ----------------------------------------------------------------


@pytest.mark.parametrize("path", ["/health", "/v1/models", "/metrics", "/admin/deployments", "/nowhere"])
def test_a_foreign_host_or_origin_is_refused_on_every_route(server: RunningStoker, path: str) -> None:
    token = {"Authorization": f"Bearer {server.admin_token}"}
    for headers, code in (
        ({"Host": "attacker.example"}, "foreign_host"),
        ({"Host": f"127.0.0.1.attacker.example:{server.port}"}, "foreign_host"),
        ({"Origin": "https://attacker.example"}, "foreign_origin"),
        ({"Origin": "null"}, "foreign_origin"),
    ):
        answer = server.request("GET", path, headers={**token, **headers})
        assert answer.status in {403, 421}
        assert answer.json()["error"]["code"] == code
        assert "access-control-allow-origin" not in answer.headers
    assert server.request("POST", CHAT, GOOD, headers={"Origin": "https://attacker.example"}).status == 403


@pytest.mark.parametrize("authorization", [None, "Bearer ", "Bearer sk-any", "Basic YTpi"])
@pytest.mark.parametrize("path", ["/admin", "/admin/deployments", "/admin/keys", "/admin/openapi.json", "/admin/x"])
def test_admin_needs_its_token_even_on_loopback(server: RunningStoker, path: str, authorization: str | None) -> None:
    answer = server.request("GET", path, headers={"Authorization": authorization} if authorization else {})
    assert answer.status == 401
    assert "www-authenticate" in answer.headers


@pytest.mark.parametrize("engine", [{"command": ["/bin/sh"]}, {"binary": "/bin/sh"}, {"env": {"LD_PRELOAD": "/x.so"}}])
def test_what_is_run_never_comes_through_the_api(server: RunningStoker, engine: dict[str, Any]) -> None:
    before = server.admin("GET", "/admin/deployments/chat")
    changed = server.admin("PATCH", "/admin/deployments/chat", {"engine": engine}, headers={"If-Match": "*"})
    created = server.admin("POST", "/admin/deployments", {"name": "shell", "model": "any", "engine": engine})
    for answer in (changed, created):
        assert answer.status == 403, answer.body
        assert next(iter(engine)) in answer.json()["error"]["message"]
    assert server.admin("GET", "/admin/deployments/chat").headers["etag"] == before.headers["etag"]
    assert server.admin("GET", "/admin/deployments/shell").status == 404


def test_neither_client_headers_nor_engine_control_fields_reach_the_engine(server: RunningStoker) -> None:
    secrets = {"Authorization": "Bearer sk-secret", "Cookie": "a=secret", "X-Forwarded-For": "secret", "X-My": "secret"}
    control = {"id_slot": 3, "cache_salt": "secret", "kv_transfer_params": {}, "chat_template": "secret", "priority": 9}
    assert server.request("POST", CHAT, {**GOOD, **control, "my_field": 1}, headers=secrets).status == 200
    seen = engine_saw(server.state_dir)
    assert seen["body"]["my_field"] == 1
    assert not control.keys() & seen["body"].keys()
    assert "secret" not in json.dumps(seen)
    assert seen["headers"].keys() <= {"host", "content-type", "content-length", "accept", "connection"}


@pytest.mark.parametrize("url", ["http://169.254.169.254/latest", "https://example.org/a.png", "file:///etc/passwd"])
def test_remote_media_are_refused_and_never_reach_the_engine(server: RunningStoker, url: str) -> None:
    assert server.request("POST", CHAT, GOOD).status == 200
    parts = [{"type": "image_url", "image_url": {"url": url}}]
    answer = server.request("POST", CHAT, {**GOOD, "messages": [{"role": "user", "content": parts}]})
    assert answer.status == 400
    assert "data: URL" in answer.json()["error"]["message"]
    assert engine_saw(server.state_dir)["body"]["messages"] == GOOD["messages"]
