"""One client connection: uvicorn's httptools protocol with limits on headers, time and count. Touches its transport."""

from __future__ import annotations

import asyncio
import logging
from collections import deque
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Any, Final, Literal
from urllib.parse import unquote

import httptools
from uvicorn.config import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from stoker.errors import BadRequest, StokerError
from stoker.gateway.cycle import Application, GatewayCycle, whole_answer
from stoker.gateway.errors import HeadersTooLarge, RequestTimedOut, TooManyConnections, envelope, status_of
from stoker.gateway.headers import CLOSE, error_headers
from stoker.gateway.wire import EXTENSION
from stoker.ids import new_request_id

MAX_HEADERS: Final = 128
MAX_PIPELINED: Final = 16
# A body must arrive at this rate at least once its time is up (Apache's RequestReadTimeout has the same two figures).
MIN_BODY_BYTES_PER_S: Final = 16 * 1024
_FRAMING_BYTES: Final = 4  # of a header line: colon, space, CR, LF
_OVER_LIMIT_SLACK: Final = 64  # connections beyond the limit that still get an answer instead of a bare close
_LINGER_S: Final = 2.0  # how long an early answer is left to be read by a client that still sends

_ASGI: Final = {"version": "3.0", "spec_version": "2.3"}
_log = logging.getLogger("stoker.gateway")
Phase = Literal["idle", "header", "body", "answer", "linger"]


@dataclass(frozen=True, slots=True)
class ConnectionLimits:
    """What one client may do; times in seconds, sizes in bytes."""

    max_header_bytes: int
    header_timeout_s: float
    body_timeout_s: float
    keep_alive_s: float
    write_timeout_s: float
    max_connections: int


class GatewayState(ServerState):
    """What the connections of one server share.

    Attributes:
        date_line: the Date header of this second, as it stands in a response.
    """

    def __init__(self) -> None:
        super().__init__()
        self.date_line = b""


class GatewayProtocol(HttpToolsProtocol):
    """Adds to uvicorn's protocol: bounds, time-outs by `check_time`, envelopes for refusals, the wire extension.

    A client that shuts down its sending side is taken to have left (as by Go's and nginx's servers): there is no other
    sign of one that gave up while it waits.
    """

    def __init__(self, config: Config, state: GatewayState, *, limits: ConnectionLimits) -> None:
        super().__init__(config, state, {}, asyncio.get_running_loop())
        self._state = state
        self._app: Application = config.loaded_app
        self._limits = limits
        self._phase: Phase = "idle"
        self._since_s = self.loop.time()
        self._body_bytes = 0
        self._unframed_bytes = 0  # received since the last header block or body byte was complete
        self._write_paused_s: float | None = None
        self._is_over_limit = False
        self._answering: GatewayCycle | None = None
        self._newest: GatewayCycle | None = None  # may still be queued behind the one that is answered
        self._queue: deque[tuple[GatewayCycle, Application, MutableMapping[str, Any]]] = deque()

    @property
    def date_line(self) -> bytes:
        return self._state.date_line

    # ------------------------------------------------------------------------------------------ connection

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        surplus = len(self.connections) - self._limits.max_connections
        self._is_over_limit = surplus > 0
        if surplus > _OVER_LIMIT_SLACK:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.connections.discard(self)
        self.flow.resume_writing()
        self._abandon_requests()
        if exc is None:
            self.transport.close()
        self._newest = None
        self.parser = None  # type: ignore[assignment]

    def shutdown(self) -> None:
        """Close once the request in flight has been answered; called when the server stops."""
        if self._answering is None or self._answering.response_complete:
            self.transport.close()
        else:
            self._answering.keep_alive = False
            self._queue.clear()

    def _abandon_requests(self) -> None:
        self._queue.clear()
        cycle, self._answering = self._answering, None
        if cycle is not None:
            cycle.leave()

    def check_time(self, now_s: float) -> None:
        """Close the connection when its phase has lasted too long."""
        limits, lasted_s = self._limits, now_s - self._since_s
        if self._write_paused_s is not None and now_s - self._write_paused_s > limits.write_timeout_s:
            _log.info("client.stopped_reading")
            self.transport.abort()
        elif self._phase == "idle":
            # A connection that never sent a byte gets the header's time, one between requests the keep-alive's.
            is_fresh = self._newest is None
            if lasted_s > (limits.header_timeout_s if is_fresh else limits.keep_alive_s):
                self.transport.close()
        elif self._phase == "header" and lasted_s > limits.header_timeout_s:
            self._refuse(RequestTimedOut(f"the headers took longer than {limits.header_timeout_s:g} s"))
        elif self._phase == "body" and not self._queue:
            if lasted_s > limits.body_timeout_s + self._body_bytes / MIN_BODY_BYTES_PER_S:
                self._refuse(RequestTimedOut(f"the body did not arrive within {limits.body_timeout_s:g} s"))
        elif self._phase == "linger" and lasted_s > _LINGER_S:
            self.transport.abort()

    # ------------------------------------------------------------------------------------------ reading

    def data_received(self, data: bytes) -> None:
        if self._phase == "linger" or self.transport.is_closing():
            return
        if self._phase == "idle":
            self._enter("header")
        self._unframed_bytes += len(data)
        try:
            self.parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            pass  # no WebSocket is served here: the request goes on as plain HTTP, the rest of the bytes is dropped
        except httptools.HttpParserError as error:
            self._refuse(error.__context__ if isinstance(error.__context__, StokerError) else _malformed(error))
            return
        if self._unframed_bytes > self._limits.max_header_bytes:
            self._refuse(HeadersTooLarge(f"more than {self._limits.max_header_bytes} bytes of headers or framing"))

    def on_message_begin(self) -> None:
        if self._phase == "idle":
            self._enter("header")
        elif len(self._queue) >= MAX_PIPELINED:
            raise BadRequest(f"more than {MAX_PIPELINED} requests were sent ahead")
        self.url = b""
        self.expect_100_continue = False
        self.headers = []

    def on_header(self, name: bytes, value: bytes) -> None:
        headers = self.headers
        if len(headers) >= MAX_HEADERS:
            raise HeadersTooLarge(f"more than {MAX_HEADERS} headers")
        if self._phase == "body":  # a trailer: nobody needs it
            return
        name = name.lower()
        if name == b"expect" and value.lower() == b"100-continue":
            self.expect_100_continue = True
        headers.append((name, value))

    def on_headers_complete(self) -> None:
        # What was read at once may hold a body too, so the headers themselves are added up, and only when it is much.
        if self._unframed_bytes > self._limits.max_header_bytes:
            self._check_header_bytes()
        self._unframed_bytes = 0
        parser = self.parser
        http_version = parser.get_http_version()
        method = parser.get_method().decode("ascii")
        raw_path, path, query = _split_target(self.url)
        cycle = GatewayCycle(
            self,
            is_head=method == "HEAD",
            keep_alive=http_version != "1.0" and parser.should_keep_alive() and not self._is_over_limit,
            expects_continue=self.expect_100_continue,
        )
        scope: MutableMapping[str, Any] = {
            "type": "http",
            "asgi": _ASGI,
            "http_version": http_version,
            "server": self.server,
            "client": self.client,
            "scheme": "http",
            "method": method,
            "root_path": "",
            "path": path,
            "raw_path": raw_path,
            "query_string": query,
            "headers": self.headers,
            "state": {},
            "extensions": {EXTENSION: cycle},
        }
        self._newest = cycle
        app = _too_many_connections if self._is_over_limit else self._app
        if self._answering is None or self._answering.response_complete:
            self._run(cycle, app, scope)
        else:
            self.flow.pause_reading()
            self._queue.append((cycle, app, scope))

    def _check_header_bytes(self) -> None:
        size_bytes = len(self.url) + sum(len(name) + len(value) + _FRAMING_BYTES for name, value in self.headers)
        if size_bytes > self._limits.max_header_bytes:
            raise HeadersTooLarge(f"more than {self._limits.max_header_bytes} bytes of headers")

    def on_body(self, body: bytes) -> None:
        self._unframed_bytes = 0
        self._body_bytes += len(body)
        if self._newest is not None:
            self._newest.feed(body)

    def on_message_complete(self) -> None:
        self._unframed_bytes = 0
        cycle = self._newest
        if cycle is None:
            return
        if cycle is self._answering:
            self._enter("idle" if cycle.response_complete else "answer")
        cycle.feed_end()

    def _run(self, cycle: GatewayCycle, app: Application, scope: MutableMapping[str, Any]) -> None:
        self._enter("body" if cycle.more_body else "answer")
        self._answering = cycle
        task = self.loop.create_task(cycle.run(app, scope))
        self.tasks.add(task)
        task.add_done_callback(self.tasks.discard)

    # ------------------------------------------------------------------------------------------ writing

    def pause_writing(self) -> None:
        self._write_paused_s = self.loop.time()
        self.flow.pause_writing()

    def resume_writing(self) -> None:
        self._write_paused_s = None
        self.flow.resume_writing()

    def on_response_complete(self) -> None:
        """Go on to the next request, if there is one; called by the request that was answered."""
        if self.transport.is_closing() or self._phase == "linger":
            return
        self.flow.resume_reading()
        if self._queue:
            self._run(*self._queue.popleft())
        elif self._phase == "answer":
            self._enter("idle")

    def linger(self) -> None:
        """Send what is written, then discard input for a moment.

        Closing at once would reset the connection and take the answer from a client that still sends. Source: RFC 9112
        §9.6.
        """
        self._enter("linger")
        if self.transport.can_write_eof() and not self.transport.is_closing():
            self.transport.write_eof()
        self.flow.resume_reading()

    # ------------------------------------------------------------------------------------------ ends

    def _enter(self, phase: Phase) -> None:
        self._phase = phase
        self._since_s = self.loop.time()
        self._body_bytes = 0

    def _refuse(self, error: StokerError) -> None:
        """Answer with an envelope where no answer has begun, and close."""
        if self.transport.is_closing():
            return
        cycle = self._answering
        is_answering = cycle is not None and cycle.response_started and not cycle.response_complete
        self._abandon_requests()
        if is_answering:
            self.transport.abort()
            return
        self.transport.write(whole_answer(error))
        self.linger()


def _split_target(target: bytes) -> tuple[bytes, str, bytes]:
    """Return raw path, decoded path and query of a request target in origin or absolute form."""
    if not target.startswith(b"/"):
        url = httptools.parse_url(target)
        raw_path, query = url.path or b"/", url.query or b""
    else:
        raw_path, _, query = target.partition(b"?")
        query = query.partition(b"#")[0]
    path = raw_path.decode("ascii")
    if "%" in path:
        path = unquote(path)
    return raw_path, path, query


def _malformed(error: Exception) -> StokerError:
    return BadRequest(f"this is not an HTTP/1.1 request: {error.__context__ or error}")


async def _too_many_connections(_scope: Any, _receive: Any, send: Any) -> None:
    error = TooManyConnections("this server has as many connections as it takes", retry_after_s=1.0)
    body = envelope(error)
    headers = [*error_headers(error, new_request_id(0), len(body)), CLOSE]
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})
