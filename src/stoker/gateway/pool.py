"""Keep-alive connections to all replicas, with the race-safe retry. Touches sockets through the running loop."""

from __future__ import annotations

import asyncio
from typing import Final

from stoker.fleet.ports import Endpoint
from stoker.gateway.upstream import UpstreamConnection, UpstreamFailed

MAX_IDLE_PER_ENDPOINT: Final = 64
MAX_IDLE_S: Final = 4.0  # below the 5 s after which cpp-httplib and uvicorn close an idle connection


class UpstreamPool:
    """Keep-alive connections to every replica.

    Args:
        connect_timeout_s: for one new connection.
    """

    def __init__(self, *, connect_timeout_s: float = 5.0) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._idle: dict[Endpoint, list[UpstreamConnection]] = {}
        self._heads: dict[tuple[Endpoint, str, bool], bytes] = {}

    async def post(self, endpoint: Endpoint, path: str, body: bytes, *, is_stream: bool) -> UpstreamConnection:
        """Send a JSON body and return the connection once the status is known; the caller must `finish` it.

        A reused connection that closes before any byte of an answer raced with the engine's own idle timer: the
        request is then sent once more on a fresh one (RFC 9112 §9.3.1). Cancelling closes the connection.

        Raises:
            UpstreamFailed: no connection, or no HTTP response on it.
        """
        head = self._heads.get((endpoint, path, is_stream)) or self._write_head(endpoint, path, is_stream)
        head = b"%s%d\r\n\r\n" % (head, len(body))
        connection = self._take(endpoint)
        is_reused = connection is not None
        while True:
            if connection is None:
                connection = await self._connect(endpoint)
            try:
                await connection.exchange(head, body)
            except UpstreamFailed:
                connection.abort()
                if not is_reused or connection.has_received:
                    raise
                connection, is_reused = None, False
            except BaseException:
                connection.abort()
                raise
            else:
                return connection

    def _keep(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose response was read to its end."""
        idle = self._idle.setdefault(connection.endpoint, [])
        if len(idle) >= MAX_IDLE_PER_ENDPOINT:
            connection.abort()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        idle.append(connection)

    def _forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that closed."""
        idle = self._idle.get(connection.endpoint)
        if idle is not None and connection in idle:
            idle.remove(connection)
            if not idle:
                del self._idle[connection.endpoint]

    def close(self) -> None:
        """Close every idle connection."""
        for idle in list(self._idle.values()):
            for connection in list(idle):
                connection.abort()
        self._idle.clear()

    def _take(self, endpoint: Endpoint) -> UpstreamConnection | None:
        idle = self._idle.get(endpoint)
        now_s = asyncio.get_running_loop().time()
        while idle:
            connection = idle.pop()
            if connection.can_carry and now_s - connection.idle_since_s < MAX_IDLE_S:
                return connection
            connection.abort()
        return None

    async def _connect(self, endpoint: Endpoint) -> UpstreamConnection:
        loop = asyncio.get_running_loop()

        def protocol() -> UpstreamConnection:
            return UpstreamConnection(endpoint, loop=loop, on_reusable=self._keep, on_lost=self._forget)

        try:
            async with asyncio.timeout(self._connect_timeout_s):
                if endpoint.socket_path is not None:
                    made = await loop.create_unix_connection(protocol, endpoint.socket_path)
                else:
                    assert endpoint.host is not None
                    assert endpoint.port is not None
                    made = await loop.create_connection(protocol, endpoint.host, endpoint.port)
        except (OSError, TimeoutError) as error:
            detail = error.strerror if isinstance(error, OSError) and error.strerror else type(error).__name__
            raise UpstreamFailed(f"the replica cannot be reached: {detail}", stage="connect") from error
        return made[1]

    def _write_head(self, endpoint: Endpoint, path: str, is_stream: bool) -> bytes:
        host = "localhost" if endpoint.socket_path is not None else endpoint.host or ""
        authority = f"[{host}]" if ":" in host else host
        authority += f":{endpoint.port}" if endpoint.port is not None else ""
        accept = "text/event-stream" if is_stream else "application/json"
        if len(self._heads) >= 1024:  # replicas come and go
            self._heads.clear()
        head = self._heads[endpoint, path, is_stream] = (
            f"POST {endpoint.base_path}{path} HTTP/1.1\r\nHost: {authority}\r\nAccept: {accept}\r\n"
            "Content-Type: application/json\r\nContent-Length: "
        ).encode("ascii")
        return head
