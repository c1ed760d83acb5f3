"""One request and its response on a client connection, after uvicorn's cycle. Touches the transport."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

from uvicorn.protocols.http.httptools_impl import STATUS_LINE, RequestResponseCycle

from stoker.errors import StokerError
from stoker.gateway.errors import envelope, status_of
from stoker.gateway.headers import CLOSE, error_headers
from stoker.ids import new_request_id

_log = logging.getLogger("stoker.gateway")


class GatewayCycle(RequestResponseCycle):
    """One request and its response on a connection, written with as few calls as possible."""

    on_disconnect: Callable[[], None] | None = None
    on_early_answer: Callable[[], None]  # called instead of a close while the client still sends its body
    _head: bytes | None = None

    def watch(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the client's connection is lost before the response is complete."""
        self.on_disconnect = callback
        if self.disconnected:
            callback()

    async def run_asgi(self, app: Any) -> None:
        """Run the application; one that returns early has the connection cut, so that no client sees a clean end."""
        try:
            await app(self.scope, self.receive, self.send)
        except Exception as bug:
            _log.exception("request.failed")
            if not self.response_started and not self.disconnected:
                error = StokerError(type(bug).__name__)
                self.response_started = self.response_complete = True
                self.transport.write(whole_answer(error))
                self.transport.close()
        finally:
            if not self.response_complete and not self.disconnected:
                if self._head is not None:
                    self.transport.write(self._head)
                self.transport.close()
            self.on_response = _nothing
            self.on_disconnect = None

    async def send(self, message: Any) -> None:
        """ASGI send. The head waits for the first body bytes, so that both leave in one write."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        kind = message["type"]
        if kind == "http.response.start":
            if self.response_started:
                raise RuntimeError("the response has already started")
            self.response_started = True
            self.waiting_for_100_continue = False
            self._head = self._write_head(message["status"], message.get("headers", ()))
            return
        if kind != "http.response.body" or not self.response_started or self.response_complete:
            raise RuntimeError(f"unexpected ASGI message {kind!r}")
        body = message.get("body", b"")
        has_more = message.get("more_body", False)
        head, self._head = self._head, None
        parts = [head] if head is not None else []
        if self.scope["method"] == "HEAD":
            self.expected_content_length = 0
        elif self.chunked_encoding:
            if body:
                parts += (b"%x\r\n" % len(body), body, b"\r\n")
            if not has_more:
                parts.append(b"0\r\n\r\n")
        else:
            self.expected_content_length -= len(body)
            if self.expected_content_length < 0:
                raise RuntimeError("the response is longer than its Content-Length")
            parts.append(body)
        self.transport.write(b"".join(parts))
        if not has_more:
            self._complete()

    def _complete(self) -> None:
        if self.expected_content_length > 0:
            raise RuntimeError("the response is shorter than its Content-Length")
        self.response_complete = True
        self.message_event.set()
        if not self.keep_alive:
            if self.more_body:
                self.on_early_answer()
            else:
                self.transport.close()
        self.on_response()

    def _write_head(self, status: int, headers: Any) -> bytes:
        if self.more_body:  # answered before the body was read: what follows is not worth reading
            self.keep_alive = False
        lines = [STATUS_LINE[status]]
        for name, value in self.default_headers:
            lines.append(b"%b: %b\r\n" % (name, value))
        for name, value in headers:
            lowered = name.lower()
            lines.append(b"%b: %b\r\n" % (lowered, value))
            if lowered == b"content-length":
                if self.chunked_encoding is None:
                    self.chunked_encoding = False
                    self.expected_content_length = int(value)
            elif lowered == b"transfer-encoding":
                self.chunked_encoding = value.lower() == b"chunked"
                self.expected_content_length = 0
            elif lowered == b"connection" and b"close" in value.lower():
                self.keep_alive = False
        num_lines = len(lines)
        if not self.keep_alive:
            lines.append(b"connection: close\r\n")
            num_lines += 1
        if self.chunked_encoding is None:
            self.chunked_encoding = self.scope["method"] != "HEAD" and status not in {204, 304}
            if self.chunked_encoding:
                lines.append(b"transfer-encoding: chunked\r\n")
                num_lines += 1
        lines.append(b"\r\n")
        head = b"".join(lines)
        # One look at the whole block instead of one at each header: a value that broke the line would add one.
        if head.count(b"\n") != num_lines + 1 or head.count(b"\r") != num_lines + 1 or b"\0" in head:
            raise RuntimeError("a response header holds a line break")
        return head


def _nothing() -> None:
    return None


def whole_answer(error: StokerError) -> bytes:
    """Write a complete HTTP response that refuses a request and announces the close."""
    body = envelope(error)
    headers = error_headers(error, new_request_id(0), len(body))
    if CLOSE not in headers:
        headers.append(CLOSE)
    return b"".join([STATUS_LINE[status_of(error)], *(b"%b: %b\r\n" % header for header in headers), b"\r\n", body])
