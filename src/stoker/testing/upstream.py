"""A scripted HTTP/1.1 engine that answers byte for byte as told. Touches a UNIX socket or a loopback port."""

from __future__ import annotations

import asyncio
import contextlib
import json
import shutil
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

from stoker.fleet.ports import Endpoint


@dataclass
class ScriptedExchange:
    """One request that reached the scripted engine, with the connection to answer it on."""

    number: int
    head: bytes
    body: bytes
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def json(self) -> Any:
        return json.loads(self.body)

    async def send(self, *parts: bytes) -> None:
        """Write each part in a packet of its own, as far as the loop allows."""
        for part in parts:
            self.writer.write(part)
            await self.writer.drain()
            await asyncio.sleep(0)

    async def send_json(self, document: object, *, status: int = 200, headers: str = "") -> None:
        body = json.dumps(document).encode()
        await self.send_body(body, status=status, headers="Content-Type: application/json\r\n" + headers)

    async def send_body(self, body: bytes, *, status: int = 200, headers: str = "") -> None:
        head = f"HTTP/1.1 {status} Scripted\r\n{headers}Content-Length: {len(body)}\r\n\r\n"
        self.writer.write(head.encode() + body)
        await self.writer.drain()

    async def start_stream(self, content_type: str = "text/event-stream") -> None:
        await self.send(
            f"HTTP/1.1 200 OK\r\nContent-Type: {content_type}\r\nTransfer-Encoding: chunked\r\n\r\n".encode()
        )

    async def chunk(self, data: bytes) -> None:
        await self.send(b"%x\r\n%b\r\n" % (len(data), data))

    async def event(self, document: object) -> None:
        text = document if isinstance(document, str) else json.dumps(document, separators=(",", ":"))
        await self.chunk(f"data: {text}\n\n".encode())

    async def end_stream(self) -> None:
        await self.send(b"0\r\n\r\n")

    async def wait_closed(self) -> None:
        """Return when the other side has closed the connection."""
        with contextlib.suppress(ConnectionError):
            while await self.reader.read(65536):
                pass

    def abort(self) -> None:
        transport = self.writer.transport
        transport.abort()


Handler = Callable[[ScriptedExchange], Awaitable[None]]


class ScriptedUpstream:
    """Serves connections with `handler`; keeps them open between requests unless the handler closed them.

    Attributes:
        requests: every request seen, in order.
        num_connections: connections accepted.
        cancelled: exchanges whose handler saw the connection close (set by handlers that care).
    """

    def __init__(self, handler: Handler, *, is_tcp: bool = False) -> None:
        self.handler = handler
        self.requests: list[ScriptedExchange] = []
        self.num_connections = 0
        self._is_tcp = is_tcp
        self._tasks: set[asyncio.Task[None]] = set()

    async def __aenter__(self) -> ScriptedUpstream:
        self._dir = tempfile.mkdtemp(dir="/tmp", prefix="up-")
        if self._is_tcp:
            self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
            self.endpoint = Endpoint(host="127.0.0.1", port=self._server.sockets[0].getsockname()[1])
        else:
            path = str(Path(self._dir) / "e.sock")
            self._server = await asyncio.start_unix_server(self._accept, path)
            self.endpoint = Endpoint(socket_path=path)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.close()
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        await self._server.wait_closed()
        shutil.rmtree(self._dir, ignore_errors=True)

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._tasks.add(task)
        self.num_connections += 1
        try:
            while not writer.is_closing():
                head = await reader.readuntil(b"\r\n\r\n")
                exchange = ScriptedExchange(
                    len(self.requests) + 1, head, await reader.readexactly(_content_length(head)), reader, writer
                )
                self.requests.append(exchange)
                await self.handler(exchange)
        except (asyncio.IncompleteReadError, ConnectionError, asyncio.CancelledError):
            pass
        finally:
            self._tasks.discard(task)
            writer.close()


def _content_length(head: bytes) -> int:
    for line in head.split(b"\r\n"):
        name, _, value = line.partition(b":")
        if name.lower() == b"content-length":
            return int(value)
    return 0


def chat_chunk(content: str | None = None, *, finish: str | None = None) -> dict[str, Any]:
    """Return one chunk of a streamed chat completion."""
    delta = {} if content is None else {"content": content}
    return {
        "id": "c1",
        "object": "chat.completion.chunk",
        "choices": [{"index": 0, "delta": delta, "finish_reason": finish}],
    }


def usage_fields(prompt: int, completion: int, cached: int = 0) -> dict[str, Any]:
    """Return an OpenAI usage object."""
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def chat_answer(text: str = "hello", *, prompt: int = 10, completion: int = 2, cached: int = 0) -> dict[str, Any]:
    """Return a whole chat completion."""
    return {
        "id": "c1",
        "object": "chat.completion",
        "choices": [{"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}],
        "usage": usage_fields(prompt, completion, cached),
    }


def chat_stream(words: Sequence[str], *, prompt: int = 10, cached: int = 0) -> Handler:
    """Return a handler that streams words as llama.cpp does; usage comes when it is asked for."""

    async def handle(exchange: ScriptedExchange) -> None:
        await exchange.start_stream()
        for word in words:
            await exchange.event(chat_chunk(word))
        await exchange.event(chat_chunk(finish="stop"))
        if (exchange.json().get("stream_options") or {}).get("include_usage"):
            await exchange.event({"id": "c1", "choices": [], "usage": usage_fields(prompt, len(words), cached)})
        await exchange.event("[DONE]")
        await exchange.end_stream()

    return handle


async def answer_chat(exchange: ScriptedExchange) -> None:
    """Answer one chat completion, streamed or whole, as asked."""
    if exchange.json().get("stream"):
        await chat_stream(["he", "llo"])(exchange)
    else:
        await exchange.send_json(chat_answer())
