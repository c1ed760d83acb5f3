"""The shipped fake engine does what it is ordered to do wrong."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from stoker.fleet.engines.health import ask_health, get, post
from stoker.fleet.ports import Endpoint

pytestmark = pytest.mark.timeout(60)

CHAT = "/v1/chat/completions"


class Fake:
    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        self.process = process
        self.folder = folder
        self.endpoint = Endpoint(socket_path=str(folder / "e.sock"))

    async def ask(self, path: str, **body: Any) -> tuple[int, bytes]:
        return await post(self.endpoint, path, json.dumps(body).encode(), limit_s=5)

    async def listening(self) -> None:
        give_up_s = time.monotonic() + 20
        while not Path(self.endpoint.socket_path or "").exists():  # noqa: ASYNC240
            assert time.monotonic() < give_up_s
            await asyncio.sleep(0.01)
        await asyncio.sleep(0)


@asynccontextmanager
async def fake(*orders: str, control: dict[str, Any] | None = None) -> AsyncIterator[Fake]:
    folder = Path(tempfile.mkdtemp(dir="/tmp", prefix="stk-"))
    if control is not None:
        (folder / "control.json").write_text(json.dumps(control))
    argv = [sys.executable, "-m", "stoker.testing.fake_engine", "--socket", str(folder / "e.sock"), *orders]
    if control is not None:
        argv += ["--control", str(folder / "control.json")]
    env = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3] / "src")}
    process = subprocess.Popen(  # noqa: ASYNC220
        argv, env=env, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True
    )
    try:
        yield Fake(process, folder)
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        shutil.rmtree(folder)


async def test_it_chats_in_one_piece_and_in_a_stream_with_usage_when_asked() -> None:
    async with fake() as engine:
        await engine.listening()
        status, whole = await engine.ask(CHAT, messages=[{"role": "user", "content": "a b"}], max_tokens=3)
        assert status == 200
        assert json.loads(whole)["usage"]["completion_tokens"] == 3
        _, plain = await engine.ask(CHAT, messages=[], max_tokens=3, stream=True)
        assert b"[DONE]" in plain
        assert b"usage" not in plain
        _, counted = await engine.ask(
            CHAT, messages=[], max_tokens=3, stream=True, stream_options={"include_usage": True}
        )
        assert b'"completion_tokens": 3' in counted


async def test_it_embeds_lists_and_counts() -> None:
    async with fake() as engine:
        await engine.listening()
        _, embedded = await engine.ask("/v1/embeddings", input=["a", "b"])
        assert len(json.loads(embedded)["data"]) == 2
        _, models = await get(engine.endpoint, "/v1/models")
        assert json.loads(models)["object"] == "list"
        _, metrics = await get(engine.endpoint, "/metrics")
        assert b"fake_prompt_tokens_total" in metrics


async def test_it_shows_what_it_was_sent() -> None:
    async with fake() as engine:
        await engine.listening()
        await engine.ask(CHAT, messages=[], max_tokens=1, marker="seen")
        _, last = await get(engine.endpoint, "/debug/last")
        assert json.loads(last)["body"]["marker"] == "seen"


async def test_it_is_starting_for_as_long_as_the_control_file_says() -> None:
    async with fake(control={"start_delay": 600}) as engine:
        await engine.listening()
        assert await ask_health(engine.endpoint, "/health") == "starting"


async def test_it_dies_at_the_start_with_the_words_it_was_given() -> None:
    async with fake("--crash-at-start", "no such weights") as engine:
        assert await asyncio.to_thread(engine.process.wait, 20) == 3
        assert engine.process.stdout is not None
        assert b"no such weights" in engine.process.stdout.read()


async def test_it_dies_with_its_nth_request() -> None:
    async with fake("--crash-after", "2") as engine:
        await engine.listening()
        assert (await engine.ask(CHAT, messages=[], max_tokens=1))[0] == 200
        with pytest.raises((ConnectionError, OSError)):
            await engine.ask(CHAT, messages=[], max_tokens=1)
        assert await asyncio.to_thread(engine.process.wait, 20) == 4


async def test_it_cuts_and_hangs_streams_and_fails_as_ordered() -> None:
    async with fake(control={"cut_after": 2}) as engine:
        await engine.listening()
        _, cut = await engine.ask(CHAT, messages=[], max_tokens=9, stream=True)
        assert cut.count(b"data: ") == 2
        assert b"[DONE]" not in cut
        (engine.folder / "control.json").write_text('{"hang_after": 2}')
        with pytest.raises(TimeoutError):
            await post(engine.endpoint, CHAT, b'{"messages": [], "max_tokens": 9, "stream": true}', limit_s=0.5)
        (engine.folder / "control.json").write_text('{"fail_with": 503}')
        assert (await engine.ask(CHAT, messages=[]))[0] == 503
        (engine.folder / "control.json").write_text('{"hang_health": true}')
        assert await ask_health(engine.endpoint, "/health") == "unhealthy"


async def test_it_ignores_sigterm_when_told_to() -> None:
    async with fake("--ignore-sigterm") as engine:
        await engine.listening()
        engine.process.terminate()
        assert (await engine.ask(CHAT, messages=[], max_tokens=1))[0] == 200
