"""A fake OpenAI-compatible engine *process* with faults to order. Standard library only; binds a socket.

`python -m stoker.testing.fake_engine --socket PATH --start-delay 3` answers as a small engine would: `/health`, chat
and text completions (streamed or not, usage included), embeddings, `/v1/models` and `/metrics`. A control file, in JSON
with the names of the options (`{"start_delay": 12}`), overrides them at each start and for each request.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

_MAX_BODY_BYTES = 64 * 2**20


@dataclass(frozen=True)
class Faults:
    """What this engine does wrong, and how slowly it does the rest.

    Attributes:
        start_delay: seconds before `/health` answers 200.
        token_delay: seconds before each token.
        tokens: how many to generate when the client gives no limit.
        crash_at_start: last words before exiting with 3.
        crash_after: exits with 4 in the middle of this request (1 = the first).
        hang_health: never answers `/health`.
        cut_after: chunks after which a stream's connection is closed without an end.
        hang_after: chunks after which a stream says nothing any more.
        fail_with: HTTP status of every completion.
        grandchild: starts a child in a session of its own that ignores SIGTERM.
        ignore_sigterm: does what it says.
        noise_bytes: written to standard output at the start.
    """

    start_delay: float = 0.0
    token_delay: float = 0.0
    tokens: int = 8
    crash_at_start: str = ""
    crash_after: int = 0
    hang_health: bool = False
    cut_after: int = 0
    hang_after: int = 0
    fail_with: int = 0
    grandchild: bool = False
    ignore_sigterm: bool = False
    noise_bytes: int = 0


@dataclass
class FakeEngine:
    """One process's state: counters as the real engine keeps them.

    Attributes:
        faults: as the command line has them; the control file is laid over them.
        start_delay: seconds, as it was when this process started.
    """

    faults: Faults
    control: Path | None
    start_delay: float = 0.0
    started_s: float = field(default_factory=time.monotonic)
    num_requests: int = 0
    input_tokens: int = 0
    output_tokens: int = 0
    last_request: dict[str, Any] = field(default_factory=dict)

    def current(self) -> Faults:
        """Return the faults as the control file has them now."""
        return with_control(self.faults, self.control)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer the requests of one connection."""
        try:
            while head := await reader.readuntil(b"\r\n\r\n"):
                line, *fields = head.decode("latin-1").split("\r\n")
                headers = {n.strip().lower(): v.strip() for n, _, v in (f.partition(":") for f in fields) if n}
                length = min(int(headers.get("content-length", "0")), _MAX_BODY_BYTES)
                body = json.loads(await reader.readexactly(length)) if length else {}
                method, target, version = line.split(" ")
                await self._route(method, target, headers, body, writer)
                if version == "HTTP/1.0" or headers.get("connection") == "close":
                    break
        except (asyncio.IncompleteReadError, ConnectionError, ValueError):
            pass
        finally:
            writer.close()

    async def _route(
        self, method: str, target: str, headers: dict[str, str], body: dict[str, Any], writer: asyncio.StreamWriter
    ) -> None:
        faults = self.current()
        if target == "/health":
            if faults.hang_health:
                await asyncio.Event().wait()
            is_ready = time.monotonic() - self.started_s >= self.start_delay
            _reply(writer, 200 if is_ready else 503, {"status": "ok" if is_ready else "loading"})
        elif target == "/metrics":
            text = f"fake_prompt_tokens_total {self.input_tokens}\nfake_tokens_predicted_total {self.output_tokens}\n"
            _reply(writer, 200, text.encode(), "text/plain")
        elif target == "/debug/last":
            _reply(writer, 200, self.last_request)
        elif target == "/v1/models":
            _reply(writer, 200, {"object": "list", "data": [{"id": "fake", "object": "model"}]})
        elif method == "POST" and target in {"/v1/chat/completions", "/v1/completions", "/v1/embeddings"}:
            self.last_request = {"path": target, "headers": headers, "body": body}
            await self._complete(target, body, faults, writer)
        else:
            _reply(writer, 404, _error("no such route"))
        await writer.drain()

    async def _complete(self, path: str, body: dict[str, Any], faults: Faults, writer: asyncio.StreamWriter) -> None:
        self.num_requests += 1
        if faults.fail_with:
            _reply(writer, faults.fail_with, _error("ordered to fail"))
            return
        prompt = json.dumps(body.get("messages") or body.get("prompt") or body.get("input") or "")
        input_tokens = len(prompt.split())
        self.input_tokens += input_tokens
        if path == "/v1/embeddings":
            inputs = body["input"] if isinstance(body["input"], list) else [body["input"]]
            data = [{"object": "embedding", "index": i, "embedding": [0.5] * 8} for i in range(len(inputs))]
            usage = {"prompt_tokens": input_tokens, "total_tokens": input_tokens}
            _reply(writer, 200, {"object": "list", "data": data, "model": body.get("model"), "usage": usage})
            return
        wanted = int(body.get("max_tokens") or body.get("max_completion_tokens") or faults.tokens)
        is_crashing = bool(faults.crash_after) and self.num_requests >= faults.crash_after
        if body.get("stream"):
            await self._stream(path, body, wanted, input_tokens, is_crashing, faults, writer)
            return
        for _ in range(wanted):
            await asyncio.sleep(faults.token_delay)
            self.output_tokens += 1
        if is_crashing:
            os._exit(4)
        text = " ".join(f"w{n}" for n in range(wanted))
        choice = (
            {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "length"}
            if path.startswith("/v1/chat")
            else {"index": 0, "text": text, "finish_reason": "length"}
        )
        _reply(writer, 200, {"id": "fake", "choices": [choice], "usage": _usage(input_tokens, wanted)})

    async def _stream(
        self,
        path: str,
        body: dict[str, Any],
        wanted: int,
        input_tokens: int,
        is_crashing: bool,
        faults: Faults,
        writer: asyncio.StreamWriter,
    ) -> None:
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n")
        for number in range(wanted):
            if faults.cut_after and number >= faults.cut_after:
                writer.close()
                return
            if is_crashing and number >= wanted // 2:
                os._exit(4)
            if faults.hang_after and number >= faults.hang_after:
                await asyncio.Event().wait()
            await asyncio.sleep(faults.token_delay)
            word = f"w{number} "
            choice = {"index": 0, "delta": {"content": word}} if "chat" in path else {"index": 0, "text": word}
            _event(writer, {"id": "fake", "object": "chat.completion.chunk", "choices": [choice]})
            self.output_tokens += 1
            await writer.drain()
        _event(writer, {"id": "fake", "choices": [{"index": 0, "delta": {}, "finish_reason": "length"}]})
        if (body.get("stream_options") or {}).get("include_usage"):
            _event(writer, {"id": "fake", "choices": [], "usage": _usage(input_tokens, wanted)})
        _chunk(writer, b"data: [DONE]\n\n")
        writer.write(b"0\r\n\r\n")


def with_control(faults: Faults, control: Path | None) -> Faults:
    """Lay the control file, when there is one, over the options."""
    if control is None or not control.exists():
        return faults
    return replace(faults, **json.loads(control.read_text()))


def _usage(input_tokens: int, output_tokens: int) -> dict[str, Any]:
    return {
        "prompt_tokens": input_tokens,
        "completion_tokens": output_tokens,
        "total_tokens": input_tokens + output_tokens,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def _error(message: str) -> dict[str, Any]:
    return {"error": {"message": message, "type": "fake_error", "param": None, "code": "fake"}}


def _reply(
    writer: asyncio.StreamWriter, status: int, content: dict[str, Any] | bytes, kind: str = "application/json"
) -> None:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    head = f"HTTP/1.1 {status} X\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    writer.write(head.encode() + body)


def _event(writer: asyncio.StreamWriter, content: dict[str, Any]) -> None:
    _chunk(writer, b"data: " + json.dumps(content).encode() + b"\n\n")


def _chunk(writer: asyncio.StreamWriter, content: bytes) -> None:
    writer.write(f"{len(content):x}\r\n".encode() + content + b"\r\n")


_STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(600)"


def main() -> None:
    """Parse the orders, commit the faults of the start, then serve."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--socket")
    parser.add_argument("--port", type=int)
    parser.add_argument("--control", type=Path)
    for name, default in vars(Faults()).items():
        flag = f"--{name.replace('_', '-')}"
        if isinstance(default, bool):
            parser.add_argument(flag, action="store_true")
        else:
            parser.add_argument(flag, type=type(default), default=default)
    given = vars(parser.parse_args())
    socket_path, port, control = given.pop("socket"), given.pop("port"), given.pop("control")
    ordered = Faults(**given)
    faults = with_control(ordered, control)
    sys.stdout.write("n" * faults.noise_bytes)
    sys.stdout.flush()
    if faults.crash_at_start:
        sys.stderr.write(faults.crash_at_start + "\n")
        sys.exit(3)
    if faults.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if faults.grandchild:
        subprocess.Popen([sys.executable, "-c", _STUBBORN], start_new_session=True)
    asyncio.run(_serve(FakeEngine(ordered, control, faults.start_delay), socket_path, port))


async def _serve(engine: FakeEngine, socket_path: str | None, port: int | None) -> None:
    if socket_path is not None:
        server = await asyncio.start_unix_server(engine.serve, socket_path, limit=2**20)
    else:
        server = await asyncio.start_server(engine.serve, "127.0.0.1", port, limit=2**20)
    await server.serve_forever()


if __name__ == "__main__":
    main()
