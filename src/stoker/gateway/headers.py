"""The response headers that say what happened to a request. Pure."""

from __future__ import annotations

import math
from typing import Final

from stoker.errors import StokerError
from stoker.fleet.ports import SlotLease
from stoker.gateway.errors import DEFAULT_RETRY_AFTER_S, source_of, status_of
from stoker.money import format_usd

Headers = list[tuple[bytes, bytes]]

JSON: Final = (b"content-type", b"application/json")
_EVENT_STREAM: Final = b"text/event-stream"
CLOSE: Final = (b"connection", b"close")
NO_RETRY: Final = (b"x-should-retry", b"false")  # the OpenAI client repeats every 5xx unless told not to


def answer_headers(
    request_id: str,
    lease: SlotLease,
    *,
    content_type: bytes | None,
    queue_s: float,
    cold_start_s: float,
    content_length: int | None,
    price_nanousd: int | None = None,
) -> Headers:
    """Write the headers of an engine's answer; the engine's own are not passed on, but for the content type."""
    headers = [
        (b"content-type", content_type if content_type is not None else b"application/octet-stream"),
        (b"x-stoker-request-id", request_id.encode()),
        (b"x-stoker-served-by", lease.replica_id.encode()),
        (b"x-stoker-tier", lease.tier.encode()),
        (b"x-stoker-cold-start-ms", b"%d" % round(cold_start_s * 1000)),
        (b"x-stoker-queue-ms", b"%d" % round(queue_s * 1000)),
    ]
    if content_length is not None:
        headers.append((b"content-length", b"%d" % content_length))
    if price_nanousd is not None:
        headers.append((b"x-stoker-cost-usd", format_usd(price_nanousd).encode()))
    return headers


def is_event_stream(content_type: bytes | None) -> bool:
    """Tell whether a content type announces server-sent events."""
    return content_type is not None and content_type[:17].lower() == _EVENT_STREAM


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
    elif status in {429, 503} and error.retryable:
        headers.append((b"retry-after", b"%d" % DEFAULT_RETRY_AFTER_S))
    elif status >= 500 and not error.retryable:
        headers.append(NO_RETRY)
    if status == 401:
        headers.append((b"www-authenticate", b"Bearer"))
    if status in {408, 413, 431}:  # the rest of the request was not read
        headers.append(CLOSE)
    return headers
