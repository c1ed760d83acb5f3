"""The compiled load generator and stand-in upstream: they count alike, and wrong answers are never counted as right."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from bench.native_tools import Load, LoadFailedError, NoCompilerError, Upstream, build, compiler, run_load

WHOLE = {"model": "any", "messages": [{"role": "user", "content": "Hello."}]}
STREAM = {**WHOLE, "stream": True, "stream_options": {"include_usage": True}}


@pytest.fixture(autouse=True, scope="module")
def _needs_a_compiler() -> None:
    try:
        compiler()
    except NoCompilerError as error:
        pytest.skip(f"NOT TESTED: {error}")


def asked(upstream: Upstream, path: str = "/stats", body: Any = None) -> bytes:
    connection = http.client.HTTPConnection("127.0.0.1", upstream.port, timeout=10)
    try:
        connection.request("POST" if body else "GET", path, json.dumps(body) if body else None)
        return connection.getresponse().read()
    finally:
        connection.close()


@pytest.mark.parametrize("connections", [1, 7])
def test_whole_answers_are_counted_alike_on_both_sides(connections: int) -> None:
    with Upstream() as upstream:
        load = Load(WHOLE, connections=connections, num_requests=200, num_warmup=14, duration_s=30)
        result = run_load(load, upstream.target)
        assert json.loads(asked(upstream)) == {"answers": 214, "streams": 0, "chunks": 0}
    assert result.report["n"] == len(result.latencies_ms) == len(result.first_bytes_ms) == 200
    assert result.report["finished"] == 214


def test_streams_are_counted_alike_to_the_chunk() -> None:
    with Upstream(num_chunks=5, interval_s=0.001, delay_s=0.002) as upstream:
        result = run_load(Load(STREAM, connections=3, num_requests=30, duration_s=30), upstream.target)
        assert json.loads(asked(upstream)) == {"answers": 0, "streams": 30, "chunks": 150}
    assert all(first <= last for first, last in zip(result.first_bytes_ms, result.latencies_ms, strict=True))


def test_the_open_loop_starts_what_is_due_and_no_more() -> None:
    with Upstream() as upstream:
        result = run_load(Load(WHOLE, connections=4, rate_per_s=200, num_requests=40, duration_s=30), upstream.target)
        assert json.loads(asked(upstream))["answers"] == 40
    assert result.report["elapsed_s"] >= 39 / 200 - 0.001


def test_time_ends_a_run_that_has_requests_left() -> None:
    with Upstream() as upstream:
        result = run_load(Load(WHOLE, num_requests=5_000_000, duration_s=0.1), upstream.target)
        assert json.loads(asked(upstream))["answers"] == result.report["finished"] < 5_000_000


def test_a_unix_socket_serves_as_a_port_does() -> None:
    with tempfile.TemporaryDirectory(dir="/tmp") as folder, Upstream(socket_path=Path(folder, "u.sock")) as upstream:
        assert run_load(Load(STREAM, connections=2, num_requests=10, duration_s=30), upstream.target).report["n"] == 10


def test_the_answer_is_a_chat_completion_with_usage() -> None:
    with Upstream(num_chunks=3) as upstream:
        answer = json.loads(asked(upstream, "/v1/chat/completions", WHOLE))
        events = [line[6:] for line in asked(upstream, "/", STREAM).decode().splitlines() if line.startswith("data: ")]
        assert json.loads(asked(upstream, "/health")) == {"status": "ok"}
    usage = {"prompt_tokens": 12, "completion_tokens": 3, "total_tokens": 15}
    assert answer["usage"] == usage
    assert events[-1] == "[DONE]"
    *chunks, stop, last = (json.loads(event) for event in events[:-1])
    assert [chunk["choices"][0]["delta"]["content"] for chunk in chunks] == [" coal0", " coal1", " coal2"]
    assert stop["choices"][0]["finish_reason"] == "stop"
    assert last == {**last, "choices": [], "usage": usage}


def test_a_client_of_http_1_0_sees_the_end_of_the_answer_by_the_end_of_the_connection() -> None:
    with Upstream() as upstream, socket.create_connection(("127.0.0.1", upstream.port), 10) as peer:
        peer.sendall(b"GET /health HTTP/1.0\r\nHost: localhost\r\n\r\n")
        with peer.makefile("rb") as answer:
            assert answer.read().endswith(b'{"status":"ok"}')


@contextmanager
def answering(raw: bytes) -> Iterator[tuple[str, ...]]:
    """A server that answers the first request on each connection with these bytes and closes."""
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def serve() -> None:
            while True:
                try:
                    peer, _ = listener.accept()
                except OSError:
                    return
                with peer:
                    peer.recv(65536)
                    peer.sendall(raw)

        thread = threading.Thread(target=serve, daemon=True)
        thread.start()
        yield ("--port", str(listener.getsockname()[1]))
        listener.shutdown(socket.SHUT_RDWR)
    thread.join(10)


SSE = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n"


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        pytest.param(b"HTTP/1.1 503 No\r\nContent-Length: 2\r\n\r\n{}", "status 503", id="another status than 200"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\n{}", "cut", id="a body shorter than promised"),
        pytest.param(SSE + b"8\r\ndata: x\n\r\n", "cut", id="a stream that breaks off"),
        pytest.param(SSE + b"8\r\ndata: x\n\r\n0\r\n\r\n", "without its end", id="a stream that ends without [DONE]"),
        pytest.param(b"HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n", "empty body", id="no body at all"),
        pytest.param(b"", "cut", id="a connection closed instead of an answer"),
        pytest.param(b"hello\r\n\r\n", "not HTTP", id="something other than HTTP"),
        pytest.param(b"HTTP/1.1 200 OK\r\n\r\nx", "unknown length", id="a body of unknown length"),
    ],
)
def test_a_wrong_answer_fails_the_run_and_is_named(raw: bytes, words: str) -> None:
    with answering(raw) as target, pytest.raises(LoadFailedError, match=words):
        run_load(Load(WHOLE, num_requests=3, duration_s=10), target)


def test_a_right_answer_from_a_server_that_closes_each_time_is_counted() -> None:
    right = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nConnection: close\r\n\r\n{}"
    with answering(right) as target:
        assert run_load(Load(WHOLE, num_requests=5, duration_s=10), target).report["n"] == 5


def test_the_end_mark_is_found_across_chunks() -> None:
    split = SSE + b"9\r\ndata: [DO\r\n4\r\nNE]\n\r\n0\r\n\r\n"
    with answering(split) as target:
        assert run_load(Load(WHOLE, num_requests=2, duration_s=10), target).report["n"] == 2


def test_nobody_listening_is_named() -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    with pytest.raises(LoadFailedError, match="connect"):
        run_load(Load(WHOLE, num_requests=1, duration_s=1), ("--port", str(port)))


def test_a_build_is_made_once() -> None:
    program = build("load")
    made_at_ns = program.stat().st_mtime_ns
    assert build("load") == program
    assert program.stat().st_mtime_ns == made_at_ns


def _lives(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_the_stand_in_ends_when_its_starter_is_killed() -> None:
    program = build("upstream")
    starter = subprocess.Popen(["sh", "-c", f"'{program}' --port 0 & echo $!; wait"], stdout=subprocess.PIPE, text=True)
    assert starter.stdout is not None
    # It asks for the parent-death signal before it listens; earlier there is nothing to send it.
    lines = [starter.stdout.readline(), starter.stdout.readline()]
    pid = next(int(line) for line in lines if line.strip().isdigit())
    starter.kill()
    starter.wait(10)
    deadline_s = time.monotonic() + 20
    while _lives(pid):
        assert time.monotonic() < deadline_s
        time.sleep(0.05)
    starter.stdout.close()
