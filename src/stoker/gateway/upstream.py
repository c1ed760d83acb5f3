"""One HTTP/1.1 connection to an engine: post a body, stream the answer. Touches a socket through the running loop."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from typing import Final, Literal, cast

import httptools

from stoker.errors import EngineFailed

MAX_HEAD_BYTES: Final = 64 * 1024  # status line and headers; also chunk framing and trailers without any body between
MAX_HEADERS: Final = 100
MAX_INTERIM_RESPONSES: Final = 16
HIGH_WATER_BYTES: Final = 256 * 1024  # unread body beyond which the engine is no longer listened to

Stage = Literal["connect", "head", "body"]


class UpstreamFailed(EngineFailed):
    """The connection to a replica failed, or what came over it is not an HTTP response.

    Attributes:
        stage: `connect`, `head` (no status yet) or `body` (truncated after the status).
    """

    def __init__(self, message: str, *, stage: Stage) -> None:
        super().__init__(message)
        self.stage = stage


class UpstreamConnection(asyncio.Protocol):
    """One connection and the response that is being read from it; used by one task at a time.

    Attributes:
        status: of the final response; 1xx responses are skipped.
        content_type, content_length, retry_after: headers that matter to us; all others are dropped.
        is_complete: the whole response has arrived (some of it may still be unread).
    """

    __slots__ = (
        "_can_reuse", "_error", "_framing_bytes", "_has_framing", "_is_interim", "_is_open", "_is_paused", "_loop",
        "_num_headers", "_num_interim", "_on_lost", "_on_reusable", "_parser", "_pieces", "_transport",
        "_unread_bytes", "_waiter",
        "content_length", "content_type", "has_received", "idle_since_s", "in_use", "is_complete",
        "is_head_done", "retry_after", "status",
    )  # fmt: skip

    def __init__(
        self,
        *,
        loop: asyncio.AbstractEventLoop,
        on_reusable: Callable[[UpstreamConnection], None],
        on_lost: Callable[[UpstreamConnection], None],
    ) -> None:
        self._loop = loop
        self._on_reusable = on_reusable
        self._on_lost = on_lost
        self._parser = httptools.HttpResponseParser(self)
        self._transport: asyncio.Transport | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._is_open = True
        self.idle_since_s = 0.0
        self.in_use = False
        self._pieces: list[bytes] = []
        self._begin_exchange()

    def _begin_exchange(self) -> None:
        self._pieces.clear()
        self._error: UpstreamFailed | None = None
        self._unread_bytes = self._framing_bytes = self._num_headers = self._num_interim = 0
        self._is_interim = self._is_paused = self._can_reuse = self._has_framing = False
        self.is_head_done = self.is_complete = self.has_received = False
        self.status = 0
        self.content_type: bytes | None = None
        self.content_length: int | None = None
        self.retry_after: bytes | None = None

    # ------------------------------------------------------------------------------------------ the caller's side

    async def exchange(self, head: bytes, body: bytes) -> None:
        """Send one request and wait for the response's status. Raises `UpstreamFailed`."""
        if self._transport is None or not self._is_open:
            raise UpstreamFailed("the replica closed the connection", stage="head")
        self._begin_exchange()
        self.in_use = True
        self._transport.write(head + body if len(body) < HIGH_WATER_BYTES else head)
        if len(body) >= HIGH_WATER_BYTES:
            self._transport.write(body)
        while not self.is_head_done:
            if self._error is not None:
                raise self._error
            await self._wait()

    async def read(self) -> bytes:
        """Return all body bytes at hand, waiting for some; `b""` at the end. Raises `UpstreamFailed` if truncated."""
        pieces = self._pieces
        while not pieces:
            if self._error is not None:
                raise self._error
            if self.is_complete:
                return b""
            await self._wait()
        data = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        pieces.clear()
        self._unread_bytes = 0
        if self._is_paused and self._transport is not None:
            self._is_paused = False
            self._transport.resume_reading()
        return data

    def finish(self) -> None:
        """Give the connection back to the pool when the response was read to its end, else close it at once.

        Closing is how an engine is told to stop. A second call does nothing. Read nothing of the response afterwards:
        the connection may carry another one by then.
        """
        if not self.in_use:
            return
        self.in_use = False
        transport = self._transport
        is_spent = self.is_complete and self._can_reuse and not self._pieces and not self._is_paused
        if is_spent and self._is_open and transport is not None and transport.get_write_buffer_size() == 0:
            self._on_reusable(self)
            return
        self.abort()

    def unread(self) -> bytes | None:
        """Return the rest of the body when the whole of it is here, without waiting; None otherwise."""
        return b"".join(self._pieces) if self.is_complete and self.in_use else None

    def abort(self) -> None:
        """Close without flushing."""
        self.in_use = self._is_open = False
        if self._transport is not None:
            self._transport.abort()

    @property
    def can_carry(self) -> bool:
        return self._is_open and self._transport is not None and not self._transport.is_closing()

    async def _wait(self) -> None:
        self._waiter = self._loop.create_future()
        try:
            await self._waiter
        finally:
            self._waiter = None

    def _wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def _fail(self, message: str) -> None:
        if self._error is None and not self.is_complete:
            self._error = UpstreamFailed(message, stage="body" if self.is_head_done else "head")
        self._can_reuse = self._is_open = False
        self._wake()
        if self._transport is not None:
            self._transport.abort()

    # ------------------------------------------------------------------------------------------ the loop's side

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = cast(asyncio.Transport, transport)  # uvloop's do not inherit from it
        sock = transport.get_extra_info("socket")
        if sock is not None and sock.family in {socket.AF_INET, socket.AF_INET6}:
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def data_received(self, data: bytes) -> None:
        if not self.in_use:  # an engine that speaks unasked cannot be trusted with the next request
            self._fail("the replica spoke unasked")
            return
        self.has_received = True
        self._framing_bytes += len(data)
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._fail("the replica tried to switch protocols")
        except httptools.HttpParserError as error:
            self._fail(f"the replica's answer is not HTTP: {error.__context__ or error}")
        if self._framing_bytes > MAX_HEAD_BYTES and not self.is_complete:
            self._fail(f"the replica sent {self._framing_bytes} bytes of headers or framing without a body")
        self._wake()

    def connection_lost(self, exc: Exception | None) -> None:
        self._is_open = False
        if self.in_use and self.is_head_done and not self._has_framing and exc is None and self._error is None:
            self.is_complete = True  # a body without Content-Length or chunks ends with the connection
        if self.in_use and not self.is_complete:
            self._fail("the replica closed the connection in mid-answer" if self.has_received
                       else "the replica closed the connection without answering")  # fmt: skip
        self._wake()
        self._on_lost(self)

    # ------------------------------------------------------------------------------------------ the parser's side

    def on_message_begin(self) -> None:
        if self.is_complete:
            raise ValueError("a second response to one request")

    def on_header(self, name: bytes, value: bytes) -> None:
        self._num_headers += 1
        if self._num_headers > MAX_HEADERS:
            raise ValueError(f"more than {MAX_HEADERS} headers")
        if self.is_head_done:  # a trailer
            return
        name = name.lower()
        if name == b"content-type":
            if b"\n" in value or b"\r" in value:
                raise ValueError("a folded content type")
            self.content_type = value
        elif name == b"content-length":
            self._has_framing = True
            self.content_length = int(value)
        elif name == b"transfer-encoding":
            self._has_framing = True
        elif name == b"retry-after":
            self.retry_after = value

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if 100 <= status < 200:
            self._num_interim += 1
            if self._num_interim > MAX_INTERIM_RESPONSES:
                raise ValueError(f"more than {MAX_INTERIM_RESPONSES} interim responses")
            self._is_interim = True
            self.content_type = self.content_length = self.retry_after = None
            self._has_framing = False
            return
        if not 200 <= status < 600:
            raise ValueError(f"status {status}")
        self.status = status
        self.is_head_done = True
        self._framing_bytes = 0

    def on_body(self, data: bytes) -> None:
        self._framing_bytes = 0
        self._pieces.append(data)
        self._unread_bytes += len(data)
        if self._unread_bytes > HIGH_WATER_BYTES and not self._is_paused and self._transport is not None:
            self._is_paused = True
            self._transport.pause_reading()

    def on_message_complete(self) -> None:
        if self._is_interim:
            self._is_interim = False
            return
        self.is_complete = True
        self._can_reuse = bool(self._parser.should_keep_alive())
