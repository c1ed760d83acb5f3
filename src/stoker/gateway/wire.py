"""What our own server offers an application beyond ASGI, so that an answer costs two calls. Pure interface."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Final, Protocol

EXTENSION: Final = "stoker.wire"


class ClientWire(Protocol):
    """One response on a client connection. Writing after the client has left does nothing."""

    @property
    def is_full(self) -> bool:
        """The client reads too slowly: wait for `drain` before the next write."""
        ...

    def watch(self, callback: Callable[[], None]) -> None:
        """Call `callback` once when the client's connection is lost before the response is complete."""
        ...

    def take_body(self, max_bytes: int) -> bytes | None:
        """Return the request's body where it has arrived whole and is not larger, None otherwise: then `receive`."""
        ...

    def start(self, status: int, block: bytes, content_length: int | None) -> None:
        """Set status and headers; they leave with the first body bytes.

        Args:
            block: header lines, each ended by CR LF, free of framing headers.
            content_length: of the body in bytes; None: chunked.
        """
        ...

    def write(self, body: bytes, *, has_more: bool) -> None:
        """Write a part of the body; the last one completes the response."""
        ...

    async def drain(self) -> None:
        """Wait until the client has read enough, or left."""
        ...


def wire_of(scope: Mapping[str, Any]) -> ClientWire | None:
    """Return the extension where the server offers it."""
    found: ClientWire | None = (scope.get("extensions") or {}).get(EXTENSION)
    return found
