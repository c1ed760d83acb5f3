"""Keep-alive connections to all replicas, with the race-safe retry. Touches sockets through the running loop."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Final

from stoker.fleet.ports import Endpoint
from stoker.gateway.upstream import UpstreamConnection, UpstreamFailed

MAX_IDLE_PER_ENDPOINT: Final = 64
MAX_PEERS: Final = 256
MAX_IDLE_S: Final = 4.0  # below the 5 s after which cpp-httplib and uvicorn close an idle connection


class _Peer:
    """One endpoint's idle connections, the last used one last, and its request heads."""

    __slots__ = ("endpoint", "heads", "idle")

    def __init__(self, endpoint: Endpoint) -> None:
        self.endpoint = endpoint
        self.idle: list[UpstreamConnection] = []
        self.heads: dict[tuple[str, bool], bytes] = {}

    def keep(self, connection: UpstreamConnection) -> None:
        """Keep a connection whose response was read to its end."""
        if len(self.idle) >= MAX_IDLE_PER_ENDPOINT:
            connection.abort()
            return
        connection.idle_since_s = asyncio.get_running_loop().time()
        self.idle.append(connection)

    def forget(self, connection: UpstreamConnection) -> None:
        """Drop a connection that closed."""
        if connection in self.idle:
            self.idle.remove(connection)

    def take(self) -> UpstreamConnection | None:
        """Return a kept connection that should still be open."""
        idle = self.idle
        while idle:
            connection = idle.pop()
            if connection.can_carry and asyncio.get_running_loop().time() - connection.idle_since_s < MAX_IDLE_S:
                return connection
            connection.abort()
        return None

    async def connect(self, timeout_s: float) -> UpstreamConnection:
        """Open a connection. Raises `UpstreamFailed`."""
        loop = asyncio.get_running_loop()
        endpoint = self.endpoint

        def protocol() -> UpstreamConnection:
            return UpstreamConnection(loop=loop, on_reusable=self.keep, on_lost=self.forget)

        try:
            async with asyncio.timeout(timeout_s):
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

    def head(self, path: str, *, is_stream: bool) -> bytes:
        """Return the request's head up to the value of Content-Length."""
        head = self.heads.get((path, is_stream))
        if head is None:
            endpoint = self.endpoint
            host = "localhost" if endpoint.socket_path is not None else endpoint.host or ""
            authority = f"[{host}]" if ":" in host else host
            authority += f":{endpoint.port}" if endpoint.port is not None else ""
            accept = "text/event-stream" if is_stream else "application/json"
            head = self.heads[path, is_stream] = (
                f"POST {endpoint.base_path}{path} HTTP/1.1\r\nHost: {authority}\r\nAccept: {accept}\r\n"
                "Content-Type: application/json\r\nContent-Length: "
            ).encode("ascii")
        return head


class UpstreamPool:
    """Keep-alive connections to every replica.

    Args:
        connect_timeout_s: for one new connection.
    """

    def __init__(self, *, connect_timeout_s: float = 5.0) -> None:
        self._connect_timeout_s = connect_timeout_s
        self._peers: dict[Endpoint, _Peer] = {}

    async def post(
        self,
        endpoint: Endpoint,
        path: str,
        body: bytes,
        *,
        is_stream: bool,
        on_cancel: Callable[[UpstreamConnection], None] = UpstreamConnection.abort,
    ) -> UpstreamConnection:
        """Send a JSON body and return the connection once the status is known; the caller must `finish` it.

        A reused connection that closes before any byte of an answer raced with the engine's own idle timer: the
        request is then sent once more on a fresh one (RFC 9112 §9.3.1).

        Args:
            on_cancel: gets the connection when the caller is cancelled while it waits, and must abort it in the end.

        Raises:
            UpstreamFailed: no connection, or no HTTP response on it.
        """
        peer = self._peers.get(endpoint) or self._meet(endpoint)
        head = b"%b%d\r\n\r\n" % (peer.head(path, is_stream=is_stream), len(body))
        connection = peer.take()
        is_reused = connection is not None
        while True:
            if connection is None:
                connection = await peer.connect(self._connect_timeout_s)
            try:
                await connection.exchange(head, body)
            except UpstreamFailed:
                connection.abort()
                if not is_reused or connection.has_received:
                    raise
                connection, is_reused = None, False
            except asyncio.CancelledError:
                on_cancel(connection)
                raise
            except BaseException:
                connection.abort()
                raise
            else:
                return connection

    def close(self) -> None:
        """Close every idle connection."""
        for peer in self._peers.values():
            for connection in list(peer.idle):
                connection.abort()
        self._peers.clear()

    def _meet(self, endpoint: Endpoint) -> _Peer:
        if len(self._peers) >= MAX_PEERS:  # replicas come and go; those without a connection are gone
            self._peers = {known: peer for known, peer in self._peers.items() if peer.idle}
        peer = self._peers[endpoint] = _Peer(endpoint)
        return peer
