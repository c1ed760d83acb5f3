"""The inference routes and how each one's stream ends. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass

from stoker.fleet.ports import Surface


@dataclass(frozen=True, slots=True)
class SurfaceShape:
    """What the data path must know of one surface's wire format.

    Attributes:
        final_event: matches the event after which a client takes the answer for complete.
        quick_marks: an event without any of these bytes needs no look inside; empty: look at every event.
        takes_stream_options: `stream_options.include_usage` asks for a usage chunk.
        has_event_names: SSE events carry an `event:` line.
        is_anthropic: errors look as Anthropic's clients expect.
    """

    final_event: re.Pattern[bytes]
    quick_marks: tuple[bytes, ...] = ()
    takes_stream_options: bool = False
    has_event_names: bool = False
    is_anthropic: bool = False


_OPENAI_STREAM = SurfaceShape(
    final_event=re.compile(rb"^data: ?\[DONE\]", re.MULTILINE),
    quick_marks=(b'"usage"', b"[DONE]", b'"error"'),
    takes_stream_options=True,
)
SHAPES: dict[Surface, SurfaceShape] = {
    "chat.completions": _OPENAI_STREAM,
    "completions": _OPENAI_STREAM,
    "embeddings": _OPENAI_STREAM,
    "infill": SurfaceShape(final_event=re.compile(rb'"stop"\s*:\s*true')),
    "responses": SurfaceShape(
        final_event=re.compile(rb"^event: ?response\.(?:completed|incomplete|failed)\r?$", re.MULTILINE),
        has_event_names=True,
    ),
    "messages": SurfaceShape(
        final_event=re.compile(rb"^event: ?message_stop\r?$", re.MULTILINE), has_event_names=True, is_anthropic=True
    ),
}

PATHS: dict[str, Surface] = {
    "/v1/chat/completions": "chat.completions",
    "/v1/completions": "completions",
    "/v1/embeddings": "embeddings",
    "/v1/infill": "infill",
    "/infill": "infill",
    "/v1/responses": "responses",
    "/v1/messages": "messages",
}
