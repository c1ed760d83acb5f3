"""Server-sent events on their way through: passed on untouched, usage noted, the last one held. Pure."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Final

import orjson

from stoker.gateway.openai.surfaces import SurfaceShape
from stoker.gateway.openai.usage import Usage, find_usage

MAX_EVENT_BYTES: Final = 1024 * 1024  # an unfinished event beyond this is passed on without a look inside
_EVENT_END = re.compile(rb"\r\n\r\n|\n\n|\r\r")
_ERROR_EVENT = re.compile(rb'^event: ?error\b|^data: ?\{\s*"error"\s*:\s*\{', re.MULTILINE)


class EventTap:
    """Feeds on pieces of a stream as they arrive, cut anywhere, and gives back what may leave now.

    The event that completes an answer, and all that follows it, stays in `held` until the caller has made the
    settlement durable.

    Args:
        shape: how this surface's stream ends.
        hides_usage: the client did not ask for the usage chunk that we asked the engine for.
        extension: writes the members that are added to a usage chunk the client asked for, e.g. `"x_stoker":{…}`.

    Attributes:
        usage: the last report, None so far.
        num_events: events that carried output (each stands for a token where nothing better is known).
        has_error: the engine spoke of an error within the stream.
    """

    __slots__ = (
        "_carry", "_extension", "_hides_usage", "_last_piece", "_shape", "has_error", "held", "is_final", "num_events",
        "usage",
    )  # fmt: skip

    def __init__(
        self, shape: SurfaceShape, *, hides_usage: bool, extension: Callable[[Usage], bytes] | None = None
    ) -> None:
        self._shape = shape
        self._hides_usage = hides_usage
        self._extension = extension
        self._carry = b""
        self.usage: Usage | None = None
        self.num_events = 0
        self.has_error = False
        self.is_final = False
        self.held = b""
        self._last_piece = b""

    @property
    def last_event(self) -> bytes:
        """The last whole event that carried output, `b""` before the first."""
        return self._last_piece.rstrip(b"\n").rpartition(b"\n\n")[2]

    def feed(self, piece: bytes) -> bytes:
        """Return the bytes that may leave now: whole events only, possibly none."""
        if not self._carry and not self.is_final and piece.endswith(b"\n\n") and b"\r" not in piece:
            marks = self._shape.quick_marks
            for mark in marks:
                if mark in piece:
                    break
            else:
                if marks:
                    self.num_events += piece.count(b"\n\n")
                    self._last_piece = piece
                    return piece
        return self._look_inside(self._carry + piece if self._carry else piece)

    def finish(self) -> None:
        """Note the clean end of the stream: an unfinished last event is held like a final one."""
        self.held += self._carry
        self._carry = b""

    def _look_inside(self, data: bytes) -> bytes:
        leaving: list[bytes] = []
        start = 0
        for end in _EVENT_END.finditer(data):
            event = data[start : end.end()]
            start = end.end()
            if self.is_final or self._shape.final_event.search(event):
                self.is_final = True
                self._note_usage(event)
                self.held += event
            else:
                leaving.append(self._inspect(event))
        self._carry = data[start:]
        if len(self._carry) > MAX_EVENT_BYTES:
            leaving.append(self._carry)
            self._carry = b""
        return b"".join(leaving)

    def _inspect(self, event: bytes) -> bytes:
        if _ERROR_EVENT.search(event):
            self.has_error = True
            return event
        if event.startswith(b":"):  # a comment, such as a keep-alive ping
            return event
        self._last_piece = event
        usage = self._note_usage(event)
        if usage is None or not self._shape.takes_stream_options:
            self.num_events += 1
            return event
        return self._rewrite_usage_chunk(event, usage)

    def _note_usage(self, event: bytes) -> Usage | None:
        usage = find_usage(event)
        if usage is not None:
            self.usage = usage if self.usage is None else self.usage.merged(usage)
        return usage

    def _rewrite_usage_chunk(self, event: bytes, usage: Usage) -> bytes:
        start = event.find(b"{")
        end = event.rfind(b"}")
        try:
            chunk = orjson.loads(event[start : end + 1])
        except orjson.JSONDecodeError:
            return event
        if chunk.get("choices"):  # some engines report beside the output
            self.num_events += 1
            if self._hides_usage and chunk.pop("usage", None) is not None:
                return event[:start] + orjson.dumps(chunk) + event[end + 1 :]
            return event
        if self._hides_usage:
            return b""
        if self._extension is None:
            return event
        return event[:end] + b"," + self._extension(usage) + event[end:]
