"""A client that polls tightly for an engine's first token. Touches one TCP port or UNIX socket."""

from __future__ import annotations

import http.client
import json
import socket
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

POLL_S = 0.002  # far below the figures measured (400 ms and more), yet it leaves the cores to the engine


@dataclass(frozen=True, slots=True)
class Address:
    """Where a server listens: a UNIX socket path, or a host and port."""

    socket_path: str | None = None
    host: str = "127.0.0.1"
    port: int = 0

    def connect(self, timeout_s: float) -> http.client.HTTPConnection:
        """A connected HTTP connection.

        Raises:
            OSError: when nobody listens there yet.
        """
        if self.socket_path is not None:
            sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
            sock.settimeout(timeout_s)
            try:
                sock.connect(self.socket_path)
            except OSError:
                sock.close()
                raise
        else:
            sock = socket.create_connection((self.host, self.port), timeout_s)
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        connection = http.client.HTTPConnection(self.host, self.port or 80, timeout=timeout_s)
        connection.sock = sock
        return connection


@dataclass(frozen=True, slots=True)
class FirstToken:
    """When a streamed answer began and ended, on the monotonic clock, and what it said.

    Attributes:
        headers: lower-case names.
    """

    sent_s: float
    first_token_s: float
    done_s: float
    text: str
    headers: Mapping[str, str]


class NotServedError(Exception):
    """The server answered with something other than a stream, or not in time; the message says what."""


def chat_body(model: str, prompt: str, max_tokens: int) -> bytes:
    """A streamed, greedy chat completion."""
    body = {
        "model": model,
        "messages": [{"role": "user", "content": prompt}],
        "stream": True,
        "max_tokens": max_tokens,
        "temperature": 0,
    }
    return json.dumps(body).encode()


def wait_until(probe: Callable[[], bool], *, deadline_s: float, what: str) -> float:
    """Poll until the probe holds; the monotonic time at which it did.

    Raises:
        NotServedError: when `deadline_s` (monotonic) passes first.
    """
    while not probe():
        if time.monotonic() > deadline_s:
            raise NotServedError(f"{what} did not happen in time")
        time.sleep(POLL_S)
    return time.monotonic()


def is_listening(address: Address) -> bool:
    """Whether a connection is accepted."""
    try:
        address.connect(1.0).close()
    except OSError:
        return False
    return True


def is_healthy(address: Address, path: str = "/health") -> bool:
    """Whether the health path answers 200."""
    try:
        connection = address.connect(5.0)
    except OSError:
        return False
    try:
        connection.request("GET", path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def stream_chat(address: Address, body: bytes, headers: Mapping[str, str], timeout_s: float) -> FirstToken:
    """Post a streamed chat completion and read it to its end.

    The first token is the first chunk with a non-empty `content`, not the role that engines announce at once.

    Raises:
        NotServedError: on another status than 200, a broken stream, or a stream without a token.
    """
    sent_s = time.monotonic()
    try:
        connection = address.connect(timeout_s)
        try:
            connection.request(
                "POST", "/v1/chat/completions", body, {"content-type": "application/json", **dict(headers)}
            )
            response = connection.getresponse()
            if response.status != 200:
                raise NotServedError(f"status {response.status}: {response.read(500).decode(errors='replace')}")
            text: list[str] = []
            first_token_s: float | None = None
            while line := response.readline():
                if not line.startswith(b"data: "):
                    continue
                if line.startswith(b"data: [DONE]"):
                    break
                for choice in json.loads(line[6:]).get("choices", ()):
                    if piece := choice.get("delta", {}).get("content"):
                        first_token_s = first_token_s or time.monotonic()
                        text.append(piece)
            done_s = time.monotonic()
            if first_token_s is None:
                raise NotServedError("the stream ended without a token")
            answer_headers = {name.lower(): value for name, value in response.getheaders()}
            return FirstToken(sent_s, first_token_s, done_s, "".join(text), answer_headers)
        finally:
            connection.close()
    except (OSError, http.client.HTTPException) as error:
        raise NotServedError(f"{type(error).__name__}: {error}") from error
