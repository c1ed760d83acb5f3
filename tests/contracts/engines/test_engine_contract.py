"""One suite for every `Engine`: real llama.cpp, a command that is the shipped fake engine, vLLM's profile of it."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from stoker.config.settings import DeploymentSettings
from stoker.fleet.engines.health import post
from stoker.fleet.engines.llama_cpp import LlamaCpp
from stoker.fleet.engines.openai_process import OpenAIProcess
from stoker.fleet.engines.vllm import Vllm
from stoker.fleet.ports import Endpoint, Engine, LaunchRequest, LaunchSpec, SlotUse
from stoker.models.files import ModelFile
from stoker.testing.models import default_model

pytestmark = pytest.mark.timeout(120)

FAKE = [sys.executable, "-m", "stoker.testing.fake_engine"]
KINDS = ["llama.cpp", "openai on a socket", "openai on a port", "vllm"]


class Subject:
    """An adapter, a deployment of it, and the engine that its own launch line started."""

    def __init__(self, kind: str, folder: Path) -> None:
        self.folder = folder
        self.model: ModelFile | None = default_model() if kind == "llama.cpp" else None
        engines: dict[str, tuple[Engine, dict[str, Any]]] = {
            "llama.cpp": (LlamaCpp(), {"kind": "llama.cpp", "context_tokens": 512}),
            "openai on a socket": (OpenAIProcess(), {"kind": "openai", "command": [*FAKE, "--socket", "{socket}"]}),
            "openai on a port": (OpenAIProcess(), {"kind": "openai", "command": [*FAKE, "--port", "{port}"]}),
            "vllm": (Vllm(), {"kind": "vllm", "command": [sys.executable, "-c", _AS_VLLM]}),
        }
        self.engine, engine = engines[kind]
        described = {"model": "m", "engine": engine, "memory": 64 * 2**20}
        self.settings = DeploymentSettings.model_validate(described)
        self.process: subprocess.Popen[bytes] | None = None

    def plan(self) -> LaunchSpec:
        request = LaunchRequest("d-01234567", "d", self.settings, self.model, self.folder, self.folder, 2)
        planned = self.engine.plan_launch(request)
        assert isinstance(planned, LaunchSpec)
        return planned

    def start(self) -> LaunchSpec:
        spec = self.plan()
        env = {"PYTHONPATH": str(Path(__file__).parents[3] / "src"), **spec.env}
        self.process = subprocess.Popen(spec.argv, env=env, cwd=spec.cwd, start_new_session=True)
        return spec

    async def until(self, endpoint: Endpoint, health: str) -> None:
        give_up_s = time.monotonic() + 60
        while (said := await self.engine.health(endpoint)) != health:
            assert said == "starting"
            assert time.monotonic() < give_up_s
            await asyncio.sleep(0.01)


_AS_VLLM = """
import sys
from stoker.testing import fake_engine
where = sys.argv.index("--uds")
sys.argv[1:] = ["--socket", sys.argv[where + 1]]
fake_engine.main()
"""


@pytest.fixture(params=KINDS)
async def subject(request: pytest.FixtureRequest) -> AsyncIterator[Subject]:
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="stk-"))
    subject = Subject(request.param, folder)
    yield subject
    if subject.process is not None:
        os.killpg(subject.process.pid, signal.SIGTERM)  # as the keeper does it
        await asyncio.to_thread(subject.process.wait, 20)
    shutil.rmtree(folder)


def test_a_plan_is_whole_and_keeps_to_the_folders_it_was_given(subject: Subject) -> None:
    spec = subject.plan()
    assert spec.replica_id == "d-01234567"
    assert Path(spec.log_path).parent == subject.folder
    assert Path(spec.cwd).is_dir()
    assert (spec.endpoint.socket_path is None) == (spec.endpoint.port is not None)
    assert all(isinstance(value, str) for value in spec.env.values())


async def test_nobody_there_is_starting_not_unhealthy(subject: Subject) -> None:
    assert await subject.engine.health(subject.plan().endpoint) == "starting"


async def test_its_own_launch_line_comes_to_be_ready_and_answers(subject: Subject) -> None:
    endpoint = subject.start().endpoint
    await subject.until(endpoint, "ready")
    body: dict[str, Any] = {"model": "d", "messages": [{"role": "user", "content": "Hello"}], "max_tokens": 3}
    subject.engine.prepare("chat.completions", body, SlotUse(0, False, "salt"))
    path = subject.engine.path("chat.completions")
    status, answer = await post(endpoint, path, json.dumps(body).encode(), limit_s=60)
    assert status == 200, answer
    assert json.loads(answer)["usage"]["completion_tokens"] == 3


async def test_an_engine_that_hangs_is_unhealthy_within_a_second_or_two(subject: Subject) -> None:
    async def silent(_reader: asyncio.StreamReader, _writer: asyncio.StreamWriter) -> None:
        await asyncio.Event().wait()

    path = subject.folder / "hang.sock"
    server = await asyncio.start_unix_server(silent, path)
    assert await subject.engine.health(Endpoint(socket_path=str(path))) == "unhealthy"
    server.close()


@pytest.mark.parametrize(
    ("answer", "health"),
    [
        (b"HTTP/1.1 200 OK\r\n\r\n{}", "ready"),
        (b"HTTP/1.1 503 Loading\r\n\r\n", "starting"),
        (b"HTTP/1.1 500 Oh\r\n\r\n", "unhealthy"),
        (b"SSH-2.0-OpenSSH\r\n", "unhealthy"),
        (b"", "unhealthy"),
    ],
)
async def test_health_reads_what_is_answered(subject: Subject, answer: bytes, health: str) -> None:
    async def answering(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(answer)
        writer.close()

    path = subject.folder / "odd.sock"
    server = await asyncio.start_unix_server(answering, path)
    assert await subject.engine.health(Endpoint(socket_path=str(path))) == health
    server.close()


def test_what_steers_an_engine_never_comes_from_a_client(subject: Subject) -> None:
    stolen = {
        "id_slot": 7, "cache_prompt": True, "cache_salt": "x", "kv_transfer_params": {}, "priority": 1,
        "chat_template": "{{ x }}", "lora": [], "n_cache_reuse": 1,
    }  # fmt: skip
    body: dict[str, Any] = {"messages": [], "temperature": 0, **stolen}
    subject.engine.prepare("chat.completions", body, SlotUse(0, False, "salt"))
    assert not {name for name, value in stolen.items() if body.get(name) == value}
    assert body["temperature"] == 0


def test_every_surface_has_a_path(subject: Subject) -> None:
    for surface in subject.engine.surfaces(subject.settings, subject.model):
        assert subject.engine.path(surface).startswith("/")


def test_the_memory_need_shows_its_arithmetic(subject: Subject) -> None:
    need = subject.engine.memory_need(subject.settings, subject.model)
    assert need.total_bytes == 64 * 2**20
    assert "64 MiB" in need.arithmetic


async def test_what_a_cancelled_request_came_to_may_be_unknown_but_it_is_closed(subject: Subject) -> None:
    endpoint = subject.start().endpoint
    await subject.until(endpoint, "ready")
    closed: list[bool] = []
    body: dict[str, Any] = {"messages": [{"role": "user", "content": "Hello"}]}
    use = SlotUse(0, False, "salt")
    subject.engine.prepare("chat.completions", body, use)
    counted = await subject.engine.usage_after_cancel(
        endpoint, use, "chat.completions", body, b"", lambda: closed.append(True)
    )
    assert counted in {None, (0, 0, 0)}
    assert closed
