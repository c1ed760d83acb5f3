"""Engines that do not start, weights that are damaged, and starts that become slower: who hears what, and when."""

from __future__ import annotations

import json
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from stoker.testing.gguf import tiny_gguf
from stoker.testing.server import Answer, RunningStoker
from tests.acceptance.fakes import config, deployment, settlements, wait_until
from tests.acceptance.processes import belonging_to

LAST_WORDS = "libtorch.so.2: cannot open shared object file"


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="stk-f-"))
    yield path
    shutil.rmtree(path)


def engines(stoker: RunningStoker) -> list[str]:
    return [command for command in belonging_to(stoker.state_dir).values() if "fake_engine" in command]


def status(stoker: RunningStoker, name: str) -> dict[str, object]:
    found: dict[str, object] = stoker.admin("GET", f"/admin/deployments/{name}").json()["status"]
    return found


@pytest.mark.parametrize("orders", [("--hang-health",), ("--start-delay", "60")], ids=["hangs", "loads for ever"])
def test_an_engine_that_never_becomes_ready_is_ended_and_its_callers_are_told(orders: tuple[str, ...]) -> None:
    slow = deployment("slow", *orders, start_timeout="1s")
    with RunningStoker(config(slow)) as stoker:
        answers: list[Answer] = []
        callers = [threading.Thread(target=lambda: answers.append(stoker.chat("slow"))) for _ in range(3)]
        for caller in callers:
            caller.start()
        for caller in callers:
            caller.join(30)
        assert [answer.status for answer in answers] == [502, 502, 502]
        for answer in answers:
            error = answer.json()["error"]
            assert error["code"] == "engine_failed"
            assert "1 s" in error["message"]
            assert "stoker logs slow" in error["message"]
            assert int(answer.headers["retry-after"]) >= 1
        assert [outcome for _, outcome in settlements(stoker.state_dir)] == ["engine_error"] * 3
        wait_until(lambda: not engines(stoker))


def test_an_engine_that_exits_at_once_says_why_then_the_circuit_opens_and_closes_as_it_says(folder: Path) -> None:
    control = folder / "control"
    control.write_text(json.dumps({"crash_at_start": LAST_WORDS}))
    broken = deployment("broken", "--control", str(control), max_start_failures=2, circuit_cooldown="3s")
    with RunningStoker(config(broken, deployment("sound"))) as stoker:
        for _ in range(2):
            answer = stoker.chat("broken")
            assert answer.status == 502
            assert LAST_WORDS in answer.json()["error"]["message"]
            assert answer.json()["error"]["source"] == "engine"
        num_logs = len(list((stoker.state_dir / "logs").glob("*.log")))
        refused = [stoker.chat("broken") for _ in range(5)]
        for answer in refused:
            assert answer.status in {502, 503}
            assert "2 starts in a row failed" in answer.json()["error"]["message"]
            assert LAST_WORDS in answer.json()["error"]["message"]
            assert 1 <= int(answer.headers["retry-after"]) <= 6
        assert len(list((stoker.state_dir / "logs").glob("*.log"))) == num_logs  # nothing was started for them
        assert status(stoker, "broken")["status"] == "failed"
        assert stoker.chat("sound", max_tokens=1).status == 200  # its neighbour does not notice
        control.write_text("{}")
        time.sleep(int(refused[-1].headers["retry-after"]))
        assert stoker.chat("broken", max_tokens=1).status == 200
        assert status(stoker, "broken")["consecutive_failures"] == 0


# -- weights ---------------------------------------------------------------------------------------


GOOD_GGUF = tiny_gguf()
DAMAGED = {
    "empty": (b"", "is not a GGUF file"),
    "web-page": (b"<html>404 Not Found</html>" * 50, "is not a GGUF file"),
    "tensors-cut-off": (GOOD_GGUF[:-700], "is cut off or damaged"),
    "header-cut-off": (GOOD_GGUF[:60], "is cut off or damaged"),
    "absurd-counts": (GOOD_GGUF[:8] + b"\xff" * 16 + GOOD_GGUF[24:], "is damaged"),
    "not-as-declared": (GOOD_GGUF, "0" * 12),
}


@pytest.fixture(scope="module")
def damaged() -> Iterator[RunningStoker]:
    """One server with a deployment of each kind of damaged weights, and a sound one."""
    with tempfile.TemporaryDirectory(prefix="stk-f-") as folder, ExitStack() as stack:
        models = {}
        for name, (content, _) in DAMAGED.items():
            weights = Path(folder) / f"{name}.gguf"
            weights.write_bytes(content)
            models[name] = {"source": f"file://{weights}"}
        models["not-as-declared"]["sha256"] = "0" * 64
        deployments = [f"  {name}: {{model: {name}}}\n" for name in models]
        text = config(deployment("sound"), *deployments).replace("models: {}", f"models: {json.dumps(models)}")
        yield stack.enter_context(RunningStoker(text))


@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_weights_are_named_and_never_served(damaged: RunningStoker, name: str) -> None:
    answer = damaged.chat(name)
    assert answer.status == 503
    error = answer.json()["error"]
    assert error["code"] == "model_unavailable"
    assert DAMAGED[name][1] in error["message"]
    assert name in error["message"]
    shown = status(damaged, name)
    assert shown["status"] == "failed"
    assert DAMAGED[name][1] in str(shown["last_error"])
    assert damaged.chat("sound", max_tokens=1).status == 200
    assert {replica["deployment"] for replica in damaged.replicas()} == {"sound"}


# -- what was learned ------------------------------------------------------------------------------


def test_hold_and_refuse_follow_the_measured_start_time(folder: Path) -> None:
    control = folder / "control"
    control.write_text(json.dumps({"start_delay": 0.3}))
    changing = deployment("chat", "--control", str(control), keep_alive="50ms", max_wait="1200ms")
    with RunningStoker(config(changing)) as stoker:

        def start_and_stop(num_samples: int) -> Answer:
            answer = stoker.chat("chat", max_tokens=1)
            wait_until(lambda: status(stoker, "chat")["start_samples"] == num_samples)
            wait_until(lambda: status(stoker, "chat")["ready_replicas"] == 0 and not engines(stoker))
            return answer

        for number in (1, 2):
            assert start_and_stop(number).status == 200  # held: its start fits into max_wait
        control.write_text(json.dumps({"start_delay": 1.6}))
        for number in (3, 4, 5):
            start_and_stop(number)
        assert float(str(status(stoker, "chat")["learned_start_s"])) > 1.6

        refused = stoker.chat("chat", max_tokens=1)
        assert refused.status == 503
        error = refused.json()["error"]
        assert error["code"] == "capacity_exhausted"
        assert "the predicted wait of" in error["message"]
        assert "longer than 1.2 s" in error["message"]
        retry_after_s = int(refused.headers["retry-after"])
        assert 2 <= retry_after_s <= 10
        time.sleep(retry_after_s)
        assert stoker.chat("chat", max_tokens=1).status == 200  # what it promised
