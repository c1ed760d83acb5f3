"""A client's request: read once within its limit, checked as far as routing needs, otherwise left as it is. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any, Final

import orjson

from stoker.errors import BadRequest, BodyTooLarge
from stoker.fleet.ports import Surface
from stoker.gateway.openai.surfaces import SHAPES

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]

# A token rarely stands for more than 16 bytes of text; 32 leaves room for runs of spaces, so that only what is
# obviously too long is refused here and the engine's own count decides the rest.
OBVIOUS_BYTES_PER_TOKEN: Final = 32
_ESTIMATED_BYTES_PER_TOKEN: Final = 4
_ESTIMATED_OUTPUT_TOKENS: Final = 256
_OUTPUT_LIMITS: Final = ("max_completion_tokens", "max_tokens", "max_output_tokens", "n_predict")
_CONTENT_FIELDS: Final = ("messages", "input", "system", "prompt")
_URL_FIELDS: Final = frozenset({"url", "image_url", "audio_url", "video_url", "input_audio", "file_url"})
_OPAQUE_PARTS: Final = frozenset({"tool_use", "server_tool_use", "function_call"})  # hold the model's own arguments


class ClientLeft(Exception):
    """The client closed the connection before its request was complete."""


@dataclass(slots=True)
class ClientRequest:
    """One parsed request.

    Attributes:
        fields: the whole JSON object; unknown fields are passed on.
        model: the deployment's name; None only for infill, whose clients do not send one.
        wants_usage: the client asked for `stream_options.include_usage`.
        max_output_tokens: the client's own limit, None without one.
        body_bytes: size of the body on the wire.
    """

    fields: dict[str, Any]
    model: str | None
    is_stream: bool
    wants_usage: bool
    max_output_tokens: int | None
    body_bytes: int

    @property
    def estimated_input_tokens(self) -> int:
        """A guess from the body's size, for predicted waits and for cancelled requests that nobody counted."""
        return self.body_bytes // _ESTIMATED_BYTES_PER_TOKEN + 1

    @property
    def estimated_tokens(self) -> int:
        """Input and output together, guessed."""
        output = self.max_output_tokens if self.max_output_tokens is not None else _ESTIMATED_OUTPUT_TOKENS
        return self.estimated_input_tokens + output


async def read_body(receive: Receive, headers: Mapping[bytes, bytes], max_body_bytes: int) -> bytes:
    """Read the whole body; a body that announces itself as too large is refused unread.

    Raises:
        BodyTooLarge: more than `max_body_bytes`.
        ClientLeft: the client went away.
    """
    announced = headers.get(b"content-length")
    if announced is not None and announced.isdigit() and int(announced) > max_body_bytes:
        raise BodyTooLarge(f"the body of {int(announced)} bytes is above the limit of {max_body_bytes} bytes")
    message = await receive()
    if message["type"] != "http.request":
        raise ClientLeft
    body: bytes = message.get("body", b"")
    parts, size = [body], len(body)
    while size <= max_body_bytes and message.get("more_body"):
        message = await receive()
        if message["type"] != "http.request":
            raise ClientLeft
        part = message.get("body", b"")
        size += len(part)
        parts.append(part)
    if size > max_body_bytes:
        raise BodyTooLarge(f"the body is above the limit of {max_body_bytes} bytes")
    return b"".join(parts)


def parse_request(surface: Surface, body: bytes) -> ClientRequest:
    """Check a body as far as routing needs.

    Raises:
        BadRequest: not a JSON object, or a field that we route by has a wrong type.
    """
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequest(f"the body is not valid JSON: {error}") from error
    if not isinstance(fields, dict):
        raise BadRequest(f"the body must be a JSON object, not {_json_type(fields)}")
    model = fields.get("model")
    if not isinstance(model, str) and not (model is None and surface == "infill"):
        raise _wrong("model", "a string", model, is_missing="model" not in fields)
    is_stream = fields.get("stream", False)
    if is_stream is None:
        is_stream = False
    if not isinstance(is_stream, bool):
        raise _wrong("stream", "true or false", is_stream)
    wants_usage = False
    options = fields.get("stream_options")
    if options is not None:
        if not isinstance(options, dict):
            raise _wrong("stream_options", "an object", options)
        wants_usage = options.get("include_usage") is True
    if surface in {"chat.completions", "messages"}:
        _check_messages(fields)
    max_output_tokens = None
    for name in _OUTPUT_LIMITS:
        limit = fields.get(name)
        if limit is None:
            continue
        if type(limit) is not int:
            raise _wrong(name, "an integer", limit)
        if max_output_tokens is None and limit >= 0:  # llama.cpp takes -1 for "no limit"
            max_output_tokens = limit
    return ClientRequest(fields, model, is_stream, wants_usage, max_output_tokens, len(body))


def _check_messages(fields: dict[str, Any]) -> None:
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        raise _wrong("messages", "a list with at least one message", messages, is_missing="messages" not in fields)
    for index, message in enumerate(messages):
        if not isinstance(message, dict):
            raise _wrong(f"messages[{index}]", "an object", message)
        if not isinstance(message.get("role"), str):
            raise _wrong(f"messages[{index}].role", "a string", message.get("role"))
        content = message.get("content")
        if content is not None and not isinstance(content, str | list):
            raise _wrong(f"messages[{index}].content", "a string or a list of parts", content)


def check_media(fields: dict[str, Any]) -> None:
    """Refuse remote and file media: only `data:` URLs and inline base64 may reach an engine.

    Raises:
        BadRequest: names the first such URL's field.
    """
    for field in _CONTENT_FIELDS:
        content = fields.get(field)
        if isinstance(content, list):
            for item in content:
                # A message whose content is plain text is the common case and holds nothing to look at.
                if isinstance(item, list) or (isinstance(item, dict) and not isinstance(item.get("content"), str)):
                    _walk(item, field)
        elif isinstance(content, dict):
            _walk(content, field)


def _walk(root: object, param: str) -> None:
    pending: list[object] = [root]
    while pending:
        part = pending.pop()
        if isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, dict) and part.get("type") not in _OPAQUE_PARTS:
            for key, value in part.items():
                if isinstance(value, str):
                    is_remote = key in _URL_FIELDS and value[:5].lower() != "data:"
                    if is_remote or (key == "data" and "://" in value[:16]):
                        raise BadRequest(
                            f"{param}: remote media are not fetched ({key} {value[:64]!r})",
                            mend="send the content itself as a data: URL",
                            param=param,
                        )
                elif isinstance(value, dict | list):
                    pending.append(value)


def text_bytes(fields: dict[str, Any]) -> int:
    """Return the size of all text that the request holds, inline media left out."""
    size = 0
    pending: list[object] = [fields.get(field) for field in _CONTENT_FIELDS]
    while pending:
        part = pending.pop()
        if isinstance(part, str):
            size += len(part.encode("utf-8", "surrogatepass"))
        elif isinstance(part, list):
            pending.extend(part)
        elif isinstance(part, dict):
            pending.extend(part.get(key) for key in ("content", "text", "input_text"))
    return size


def with_usage(surface: Surface, request: ClientRequest) -> dict[str, Any]:
    """Return a copy of the fields that makes a streaming engine report its usage."""
    fields = request.fields.copy()
    if request.is_stream and not request.wants_usage and SHAPES[surface].takes_stream_options:
        fields["stream_options"] = {**(fields.get("stream_options") or {}), "include_usage": True}
    return fields


def _json_type(value: object) -> str:
    names = {list: "a list", dict: "an object", str: "a string", bool: "a boolean", int: "a number", float: "a number"}
    return names.get(type(value), "null")


def _wrong(param: str, wanted: str, value: object, *, is_missing: bool = False) -> BadRequest:
    if is_missing:
        return BadRequest(f"{param} is missing; it must be {wanted}", param=param)
    return BadRequest(f"{param} must be {wanted}, not {_json_type(value)}", param=param)
