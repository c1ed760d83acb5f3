"""The response headers that say what happened to a request. Pure."""

from __future__ import annotations

import math
from typing import Final

from stoker.errors import EngineFailed, NoCapacity, StokerError
from stoker.fleet.ports import SlotLease
from stoker.gateway.errors import DEFAULT_RETRY_AFTER_S, source_of, status_of
from stoker.money import format_usd

Headers = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
_EVENT_STREAM: Final = b"text/event-stream"
CLOSE: Final = (b"connection", b"close")
NO_RETRY: Final = (b"x-should-retry", b"false")  # the OpenAI client repeats every 5xx unless told not to


def answer_block(
    request_id: str,
    lease: SlotLease,
    *,
    content_type: bytes | None,
    queue_s: float,
    cold_start_s: float,
    price_nanousd: int | None = None,
) -> bytes:
    """Write the header lines of an engine's answer; the engine's own are not passed on, but for the content type."""
    block = (
        b"content-type: %b\r\nx-stoker-request-id: %b\r\nx-stoker-served-by: %b\r\nx-stoker-tier: %b\r\n"
        b"x-stoker-cold-start-ms: %d\r\nx-stoker-queue-ms: %d\r\n"
        % (
            content_type if content_type is not None else b"application/octet-stream",
            request_id.encode(),
            lease.replica_id.encode(),
            lease.tier.encode(),
            round(cold_start_s * 1000),
            round(queue_s * 1000),
        )
    )
    if price_nanousd is not None:
        block += b"x-stoker-cost-usd: %b\r\n" % format_usd(price_nanousd).encode()
    return block


def block_headers(block: bytes, content_length: int | None) -> Headers:
    """Return the same headers as ASGI wants them, for servers without our wire."""
    headers = [(name, value) for name, _, value in (line.partition(b": ") for line in block.split(b"\r\n") if line)]
    if content_length is not None:
        headers.append((b"content-length", b"%d" % content_length))
    return headers


def is_event_stream(content_type: bytes | None) -> bool:
    """Tell whether a content type announces server-sent events."""
    return content_type is not None and content_type[:17].lower() == _EVENT_STREAM


UNKNOWN_RETRY_AFTER_S: Final = 30
"""Where only an operator or another reservation can make room: any time sooner would be in vain."""


def error_headers(error: StokerError, request_id: str, content_length: int) -> Headers:
    """Write the headers of an error answer; `Retry-After` rounds up to whole seconds, so that it stays truthful."""
    status = status_of(error)
    headers = [
        JSON,
        (b"content-length", b"%d" % content_length),
        (b"x-stoker-request-id", request_id.encode()),
        (b"x-stoker-error-source", source_of(error).encode()),
    ]
    if error.retry_after_s is not None:
        headers.append((b"retry-after", b"%d" % max(1, math.ceil(error.retry_after_s))))
    elif isinstance(error, NoCapacity):
        headers.append((b"retry-after", b"%d" % UNKNOWN_RETRY_AFTER_S))
    elif status in {429, 503} and error.retryable and not isinstance(error, EngineFailed):
        headers.append((b"retry-after", b"%d" % DEFAULT_RETRY_AFTER_S))
    elif status >= 500 and not error.retryable:
        headers.append(NO_RETRY)
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in {408, 413, 431}:  # the rest of the request was not read
        headers.append(CLOSE)
    return headers
