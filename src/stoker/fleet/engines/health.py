"""Asks an engine one short HTTP question over its socket. Touches the network."""

from __future__ import annotations

import asyncio
import contextlib

from stoker.fleet.ports import Endpoint, Health

ASK_LIMIT_S = 1.0
_MAX_ANSWER_BYTES = 4 * 2**20


async def get(endpoint: Endpoint, path: str, *, limit_s: float = ASK_LIMIT_S) -> tuple[int, bytes]:
    """Return status and body of one `GET`, the connection closed behind it.

    Raises:
        OSError: nobody listens, or the connection broke.
        TimeoutError: no whole answer within `limit_s` seconds.
    """
    return await _exchange(endpoint, "GET", path, b"", limit_s)


async def post(endpoint: Endpoint, path: str, body: bytes, *, limit_s: float = ASK_LIMIT_S) -> tuple[int, bytes]:
    """Return status and body of one `POST` of JSON; raises as `get` does."""
    return await _exchange(endpoint, "POST", path, body, limit_s)


async def _exchange(endpoint: Endpoint, method: str, path: str, body: bytes, limit_s: float) -> tuple[int, bytes]:
    async with asyncio.timeout(limit_s):
        if endpoint.socket_path is not None:
            reader, writer = await asyncio.open_unix_connection(endpoint.socket_path)
        else:
            reader, writer = await asyncio.open_connection(endpoint.host, endpoint.port)
        try:
            # HTTP/1.0, so that the end of the body is the end of the connection.
            fields = "Host: localhost\r\n"
            if body:
                fields += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
            writer.write(f"{method} {endpoint.base_path}{path} HTTP/1.0\r\n{fields}\r\n".encode() + body)
            answer = b""
            while (piece := await reader.read(65536)) and len(answer) < _MAX_ANSWER_BYTES:
                answer += piece
        finally:
            writer.close()
            with contextlib.suppress(OSError):
                await writer.wait_closed()
    head, _, content = answer.partition(b"\r\n\r\n")
    words = head.split(b" ", 2)
    if len(words) < 2 or not words[1].isdigit():
        raise ConnectionError(f"not an HTTP answer: {answer[:80]!r}")
    return int(words[1]), content


async def ask_health(endpoint: Endpoint, path: str) -> Health:
    """Translate one answer: 200 is ready; nobody there, or 503 while loading, is starting; all else is unhealthy."""
    try:
        status, _ = await get(endpoint, path)
    except (FileNotFoundError, ConnectionRefusedError, ConnectionResetError):
        return "starting"
    except (OSError, TimeoutError):
        return "unhealthy"
    if status == 200:
        return "ready"
    return "starting" if status == 503 else "unhealthy"
