"""One request and its response on a client connection: ASGI, and the shorter way of our own. Touches the transport."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final, Protocol

from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT, FlowControl
from uvicorn.protocols.http.httptools_impl import STATUS_LINE

from stoker.errors import StokerError
from stoker.gateway.errors import envelope, status_of
from stoker.gateway.headers import CLOSE, error_headers
from stoker.ids import new_request_id

_log = logging.getLogger("stoker.gateway")
_CONTINUE: Final = b"HTTP/1.1 100 Continue\r\n\r\n"

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
Application = Callable[[MutableMapping[str, Any], Receive, Send], Awaitable[None]]


class CycleOwner(Protocol):
    """The connection, as far as a request needs it."""

    flow: FlowControl
    transport: asyncio.Transport

    @property
    def date_line(self) -> bytes: ...
    def on_response_complete(self) -> None: ...
    def linger(self) -> None: ...


class GatewayCycle:
    """Implements `wire.ClientWire` beside ASGI's `receive` and `send`.

    Attributes:
        keep_alive: the connection may carry another request afterwards.
        more_body: the request's body has not been read whole.
        disconnected: the client left before the response was complete.
    """

    __slots__ = (
        "_chunked", "_has_news", "_head", "_is_head", "_left_bytes", "_on_disconnect", "_owner", "_parts",
        "_waiter", "_waits_for_continue", "body_bytes", "disconnected", "keep_alive", "more_body",
        "response_complete", "response_started",
    )  # fmt: skip

    def __init__(self, owner: CycleOwner, *, is_head: bool, keep_alive: bool, expects_continue: bool) -> None:
        self._owner = owner
        self._is_head = is_head
        self.keep_alive = keep_alive
        self._waits_for_continue = expects_continue
        self._parts: list[bytes] = []
        self.body_bytes = 0
        self.more_body = True
        self._has_news = False
        self._waiter: asyncio.Future[None] | None = None
        self._on_disconnect: Callable[[], None] | None = None
        self.disconnected = self.response_started = self.response_complete = False
        self._head: bytes | None = None
        self._chunked: bool | None = None
        self._left_bytes = 0

    async def run(self, app: Application, scope: MutableMapping[str, Any]) -> None:
        """Run the application; one that returns early has the connection cut, so that no client sees a clean end."""
        try:
            await app(scope, self.receive, self.send)
        except Exception as bug:
            _log.exception("request.failed")
            if not self.response_started and not self.disconnected:
                self.response_started = self.response_complete = True
                self._owner.transport.write(whole_answer(StokerError(type(bug).__name__)))
                self._owner.transport.close()
        finally:
            self._on_disconnect = None
            if not self.response_complete and not self.disconnected:
                if self._head is not None:
                    self._owner.transport.write(self._head)
                self._owner.transport.close()

    # ------------------------------------------------------------------------------------------ the request

    def feed(self, body: bytes) -> None:
        """Take a part of the body."""
        if self.response_complete:
            return
        self._parts.append(body)
        self.body_bytes += len(body)
        if self.body_bytes > HIGH_WATER_LIMIT:
            self._owner.flow.pause_reading()
        self._tell()

    def feed_end(self) -> None:
        """Note the end of the body."""
        self.more_body = False
        self._tell()

    def leave(self) -> None:
        """Note that the client is gone, or is treated so."""
        if self.response_complete or self.disconnected:
            return
        self.disconnected = True
        self._tell()
        callback, self._on_disconnect = self._on_disconnect, None
        if callback is not None:
            callback()

    async def receive(self) -> MutableMapping[str, Any]:
        """ASGI receive."""
        if self._waits_for_continue and not self._owner.transport.is_closing():
            self._owner.transport.write(_CONTINUE)
            self._waits_for_continue = False
        while not self._has_news and not self.disconnected and not self.response_complete:
            self._owner.flow.resume_reading()
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if self.disconnected or self.response_complete:
            return {"type": "http.disconnect"}
        self._has_news = False
        parts, self._parts = self._parts, []
        self.body_bytes = 0
        body = parts[0] if len(parts) == 1 else b"".join(parts)
        return {"type": "http.request", "body": body, "more_body": self.more_body}

    def take_body(self, max_bytes: int) -> bytes | None:
        """Return the request's body where it has arrived whole and is not larger, None otherwise: then `receive`."""
        if self.more_body or self.body_bytes > max_bytes or self.disconnected:
            return None
        self._has_news = False
        parts, self._parts = self._parts, []
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _tell(self) -> None:
        self._has_news = True
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    # ------------------------------------------------------------------------------------------ the response

    @property
    def is_full(self) -> bool:
        return self._owner.flow.write_paused and not self.disconnected

    async def drain(self) -> None:
        """Wait until the client has read enough, or left."""
        await self._owner.flow.drain()

    def watch(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the client's connection is lost before the response is complete."""
        if self.disconnected:
            callback()
        else:
            self._on_disconnect = callback

    def start(self, status: int, block: bytes, content_length: int | None) -> None:
        """Set status and headers; they leave with the first body bytes."""
        self._begin()
        if content_length is not None:
            self._chunked, self._left_bytes = False, content_length
            framing = b"content-length: %d\r\n" % content_length
        else:
            self._chunked, framing = True, b"transfer-encoding: chunked\r\n"
        closing = b"" if self.keep_alive else b"connection: close\r\n"
        self._head = b"%b%b%b%b%b\r\n" % (STATUS_LINE[status], self._owner.date_line, block, framing, closing)

    def write(self, body: bytes, *, has_more: bool) -> None:
        """Write a part of the body; the last one completes the response."""
        if self.disconnected:
            return
        if not self.response_started or self.response_complete:
            raise RuntimeError("a body needs a response that has started and is not complete")
        head, self._head = self._head, None
        if self._is_head:
            data = b""
            self._left_bytes = 0
        elif self._chunked:
            data = b"%x\r\n%b\r\n" % (len(body), body) if body else b""
            if not has_more:
                data += b"0\r\n\r\n"
        else:
            self._left_bytes -= len(body)
            if self._left_bytes < 0 or (self._left_bytes and not has_more):
                raise RuntimeError("the response's body is not as long as its Content-Length")
            data = body
        if head is not None:
            data = head + data
        self._owner.transport.write(data)
        if not has_more:
            self._complete()

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """ASGI send."""
        if self.is_full:
            await self.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start":
            self._begin()
            self._head = self._write_head(message["status"], message.get("headers", ()))
        elif kind == "http.response.body":
            self.write(message.get("body", b""), has_more=message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")

    def _begin(self) -> None:
        if self.response_started:
            raise RuntimeError("the response has already started")
        self.response_started = True
        self._waits_for_continue = False
        if self.more_body:  # answered before the body was read: what follows is not worth reading
            self.keep_alive = False

    def _complete(self) -> None:
        self.response_complete = True
        if self._waiter is not None:
            self._tell()
        if not self.keep_alive:
            if self.more_body:
                self._owner.linger()
            else:
                self._owner.transport.close()
        self._owner.on_response_complete()

    def _write_head(self, status: int, headers: Any) -> bytes:
        lines = [STATUS_LINE[status], self._owner.date_line]
        for name, value in headers:
            lowered = name.lower()
            lines.append(b"%b: %b\r\n" % (lowered, value))
            if lowered == b"content-length":
                if self._chunked is None:
                    self._chunked, self._left_bytes = False, int(value)
            elif lowered == b"transfer-encoding":
                self._chunked, self._left_bytes = value.lower() == b"chunked", 0
            elif lowered == b"connection" and b"close" in value.lower():
                self.keep_alive = False
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
        if self._chunked is None:
            self._chunked = not self._is_head and status not in {204, 304}
            if self._chunked:
                lines.append(b"transfer-encoding: chunked\r\n")
        # One look at the whole block instead of one at each header: a value that broke the line would add one.
        num_lines = len(lines)
        lines.append(b"\r\n")
        head = b"".join(lines)
        if head.count(b"\n") != num_lines + 1 or head.count(b"\r") != num_lines + 1 or b"\0" in head:
            raise RuntimeError("a response header holds a line break")
        return head


def whole_answer(error: StokerError) -> bytes:
    """Write a complete HTTP response that refuses a request and announces the close."""
    body = envelope(error)
    headers = error_headers(error, new_request_id(0), len(body))
    if CLOSE not in headers:
        headers.append(CLOSE)
    return b"".join([STATUS_LINE[status_of(error)], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body])
