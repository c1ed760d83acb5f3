"""A real llama.cpp replica, started as the keeper starts it, and plain HTTP to it."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from stoker.config.settings import DeploymentSettings
from stoker.fleet.engines.health import get, post
from stoker.fleet.engines.llama_cpp import LlamaCpp
from stoker.fleet.ports import Endpoint, LaunchRequest, LaunchSpec, SlotUse, Surface
from stoker.models.files import ModelFile
from stoker.testing.models import default_model

PATIENCE_S = 60.0


class Replica:
    """One running engine and what it may be asked."""

    def __init__(self, process: subprocess.Popen[bytes], endpoint: Endpoint) -> None:
        self.process = process
        self.endpoint = endpoint
        self.engine = LlamaCpp()

    async def ask(self, surface: Surface, body: dict[str, Any]) -> dict[str, Any]:
        status, answer = await post(self.endpoint, self.engine.path(surface), json.dumps(body).encode(), limit_s=60)
        assert status == 200, answer
        read: dict[str, Any] = json.loads(answer)
        return read

    def prepared(
        self, surface: Surface, body: dict[str, Any], *, slot: int = 0, may_reuse: bool = False
    ) -> dict[str, Any]:
        self.engine.prepare(surface, body, SlotUse(slot, may_reuse, "salt"))
        return body

    async def slots(self) -> list[dict[str, Any]]:
        _, answer = await get(self.endpoint, "/slots", limit_s=60)
        listed: list[dict[str, Any]] = json.loads(answer)
        return listed

    async def counters(self) -> tuple[int, int, int]:
        """Input tokens (cached ones included), cached input tokens, output tokens."""
        _, answer = await get(self.endpoint, "/metrics", limit_s=60)
        computed, cached, output = (
            int(float(re.search(rf"^llamacpp:{name} (\S+)", answer.decode(), re.M)[1]))  # type: ignore[index]
            for name in ("prompt_tokens_total", "prompt_tokens_cached_total", "tokens_predicted_total")
        )
        return computed + cached, cached, output

    @asynccontextmanager
    async def sending(
        self, surface: Surface, body: dict[str, Any]
    ) -> AsyncIterator[tuple[asyncio.StreamReader, Callable[[], None]]]:
        """Send a request; yield what reads the answer and what closes the connection, as the end of the block does."""
        assert self.endpoint.socket_path is not None
        reader, writer = await asyncio.open_unix_connection(self.endpoint.socket_path, limit=2**24)
        content = json.dumps(body).encode()
        head = f"POST {self.engine.path(surface)} HTTP/1.1\r\nHost: x\r\nContent-Length: {len(content)}\r\n\r\n"
        writer.write(head.encode() + content)
        await writer.drain()
        try:
            yield reader, writer.transport.abort
        finally:
            writer.transport.abort()


def settings(**engine: Any) -> DeploymentSettings:
    return DeploymentSettings.model_validate({"model": "m", "engine": {"kind": "llama.cpp", **engine}})


def plan(folder: Path, model: ModelFile, **engine: Any) -> LaunchSpec:
    request = LaunchRequest("chat-12345678", "chat", settings(**engine), model, folder, folder, 2)
    spec = LlamaCpp().plan_launch(request)
    assert isinstance(spec, LaunchSpec)
    return spec


@contextmanager
def short_folder() -> Iterator[Path]:
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="stk-"))
    yield folder
    shutil.rmtree(folder)


def _start(spec: LaunchSpec, log_path: Path) -> subprocess.Popen[bytes]:
    with log_path.open("wb") as log:
        return subprocess.Popen(spec.argv, env=dict(spec.env), cwd=spec.cwd, stdout=log, stderr=log)


@asynccontextmanager
async def running(**engine: Any) -> AsyncIterator[Replica]:
    with short_folder() as folder:
        spec = plan(folder, default_model(), **engine)
        process = _start(spec, folder / "log")
        replica = Replica(process, spec.endpoint)
        try:
            async with asyncio.timeout(PATIENCE_S):
                while await replica.engine.health(spec.endpoint) != "ready":
                    assert process.poll() is None, (folder / "log").read_text()
                    await asyncio.sleep(0.01)
            yield replica
        finally:
            process.kill()
            await asyncio.to_thread(process.wait)


@pytest.fixture
async def replica() -> AsyncIterator[Replica]:
    """Two slots of 1,024 tokens."""
    async with running(context_tokens=1024, slots=2) as replica:
        yield replica
