"""The HTTP server inside the event loop: uvicorn's machinery, hardened. Touches the socket that wiring bound."""

from __future__ import annotations

import asyncio
import logging
import socket
import time
from email.utils import formatdate
from typing import Final

import uvicorn

from stoker.config.settings import ServerSettings
from stoker.gateway.app import ASGIApp
from stoker.gateway.protocol import ConnectionLimits, GatewayProtocol, GatewayState

BACKLOG: Final = 2048
KEEP_ALIVE_S: Final = 75.0  # nginx's default; an idle connection costs a few KiB
WRITE_TIMEOUT_S: Final = 60.0  # a client that reads nothing for this long has stopped reading
_CANCEL_GRACE_S: Final = 5.0
_MAX_SWEEP_S: Final = 0.5
_DRAIN_POLL_S: Final = 0.02

_log = logging.getLogger("stoker.gateway")


class GatewayServer:
    """Serves one application on one bound socket, in the loop that is running.

    Args:
        sock: bound, not yet listening; closed by `stop`.
        settings: limits and time-outs.
        write_timeout_s: how long a client may leave a full buffer unread.
    """

    def __init__(
        self,
        app: ASGIApp,
        sock: socket.socket,
        settings: ServerSettings,
        *,
        write_timeout_s: float = WRITE_TIMEOUT_S,
    ) -> None:
        self._sock = sock
        self._drain_timeout_s = settings.drain_timeout
        self._state = GatewayState()
        self._config = uvicorn.Config(
            app,
            loop="none",
            ws="none",
            lifespan="off",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            date_header=False,
        )
        self._limits = ConnectionLimits(
            max_header_bytes=settings.max_header,
            header_timeout_s=settings.header_timeout,
            body_timeout_s=settings.body_timeout,
            keep_alive_s=KEEP_ALIVE_S,
            write_timeout_s=write_timeout_s,
            max_connections=settings.max_connections,
        )
        shortest_s = min(settings.header_timeout, settings.body_timeout, write_timeout_s)
        self._sweep_s = max(0.01, min(_MAX_SWEEP_S, shortest_s / 4))
        self._server: asyncio.AbstractServer | None = None
        self._sweeper: asyncio.Task[None] | None = None

    @property
    def num_connections(self) -> int:
        """Open client connections."""
        return len(self._state.connections)

    async def start(self) -> None:
        """Listen; returns when connections are accepted."""
        loop = asyncio.get_running_loop()
        self._config.load()
        if self._sock.family != socket.AF_UNIX:
            self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)  # accepted sockets inherit it
        self._renew_date()
        self._server = await loop.create_server(self._protocol, sock=self._sock, backlog=BACKLOG)
        self._sweeper = loop.create_task(self._sweep())

    async def stop(self) -> None:
        """Stop accepting, let requests in flight end within the drain time-out, then cut the rest. Idempotent.

        Requests that are cut are settled before this returns, as far as the recorder has their rows queued.
        """
        server, self._server = self._server, None
        if server is None:
            return
        server.close()
        for connection in list(self._state.connections):
            connection.shutdown()
        try:
            async with asyncio.timeout(self._drain_timeout_s):
                while self._state.connections or self._state.tasks:  # noqa: ASYNC110 - plain sets, they wake nobody
                    await asyncio.sleep(_DRAIN_POLL_S)
        except TimeoutError:
            _log.warning("server.drain_timed_out", extra={"num_requests": len(self._state.tasks)})
        await self._cut()
        if self._sweeper is not None:
            self._sweeper.cancel()
            await asyncio.gather(self._sweeper, return_exceptions=True)
        self._sock.close()

    async def abort(self) -> None:
        """Cut every request now; each is still settled as far as it came. A `stop` under way then ends at once."""
        await self._cut()

    async def serve(self, until: asyncio.Event) -> None:
        """Serve until `until` is set, then stop."""
        await self.start()
        try:
            await until.wait()
        finally:
            await self.stop()

    async def _cut(self) -> None:
        tasks = list(self._state.tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=_CANCEL_GRACE_S)
        for connection in list(self._state.connections):
            connection.transport.abort()

    def _protocol(self) -> GatewayProtocol:
        return GatewayProtocol(self._config, self._state, limits=self._limits)

    async def _sweep(self) -> None:
        """Close what is too slow: one timer for all connections instead of several for each request."""
        loop = asyncio.get_running_loop()
        renewed_s = loop.time()
        while True:
            await asyncio.sleep(self._sweep_s)
            now_s = loop.time()
            for connection in list(self._state.connections):
                assert isinstance(connection, GatewayProtocol)
                connection.check_time(now_s)
            if now_s - renewed_s >= _MAX_SWEEP_S:
                renewed_s = now_s
                self._renew_date()

    def _renew_date(self) -> None:
        self._state.date_line = b"date: %b\r\n" % formatdate(time.time(), usegmt=True).encode()
