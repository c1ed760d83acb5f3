"""The one table from error code to HTTP status, and the OpenAI error envelope that says who spoke. Pure."""

from __future__ import annotations

from typing import Any, Final, Literal

import orjson

from stoker.errors import BadRequest, EngineFailed, Forbidden, NotFound, StokerError

Source = Literal["stoker", "engine"]


class UnsupportedSurface(BadRequest):
    code = "unsupported_surface"


class MethodNotAllowed(BadRequest):
    code = "method_not_allowed"


class UnknownRoute(NotFound):
    code = "unknown_route"


class ForeignHost(Forbidden):
    code = "foreign_host"


class ForeignOrigin(Forbidden):
    code = "foreign_origin"


class RequestTimedOut(BadRequest):
    code = "request_timeout"


class HeadersTooLarge(BadRequest):
    code = "headers_too_large"


class TooManyConnections(StokerError):
    code = "too_many_connections"
    retryable = True


STATUS_BY_CODE: Final[dict[str, tuple[int, str]]] = {
    "bad_request": (400, "invalid_request_error"),
    "body_too_large": (413, "invalid_request_error"),
    "context_length_exceeded": (400, "invalid_request_error"),
    "model_not_found": (404, "invalid_request_error"),
    "unsupported_surface": (404, "invalid_request_error"),
    "method_not_allowed": (405, "invalid_request_error"),
    "unknown_route": (404, "invalid_request_error"),
    "request_timeout": (408, "invalid_request_error"),
    "headers_too_large": (431, "invalid_request_error"),
    "invalid_api_key": (401, "authentication_error"),
    "forbidden": (403, "permission_error"),
    "foreign_host": (421, "permission_error"),
    "foreign_origin": (403, "permission_error"),
    "not_found": (404, "invalid_request_error"),
    "conflict": (409, "invalid_request_error"),
    "config_invalid": (400, "invalid_request_error"),
    "capacity_exhausted": (503, "overloaded_error"),
    "too_many_connections": (503, "overloaded_error"),
    "insufficient_memory": (503, "overloaded_error"),
    "deadline_exceeded": (504, "timeout_error"),
    "draining": (503, "overloaded_error"),
    "engine_failed": (502, "engine_error"),
    "keeper_unavailable": (503, "server_error"),
    "model_unavailable": (503, "server_error"),
    "ledger_unavailable": (503, "server_error"),
    "state_dir_unusable": (503, "server_error"),
    "port_taken": (503, "server_error"),
    "unsafe_binding": (503, "server_error"),
    "internal": (500, "server_error"),
}
_INTERNAL = STATUS_BY_CODE["internal"]
DEFAULT_RETRY_AFTER_S: Final = 1  # for a retryable 503 whose origin cannot tell better
_MAX_ENGINE_WORDS = 2000


def status_of(error: StokerError) -> int:
    """Return the HTTP status for an error; an engine that spoke keeps its own."""
    if isinstance(error, EngineFailed) and error.status is not None:
        return error.status
    return STATUS_BY_CODE.get(error.code, _INTERNAL)[0]


def source_of(error: StokerError) -> Source:
    """Return who spoke."""
    return "engine" if isinstance(error, EngineFailed) else "stoker"


def envelope(error: StokerError, *, is_anthropic: bool = False) -> bytes:
    """Write the body `{"error": {message, type, param, code, source}}`; an engine's own words stay as they are.

    Args:
        is_anthropic: add the outer `"type": "error"` that clients of `/v1/messages` look for.
    """
    document = _engine_words(error) if isinstance(error, EngineFailed) and error.body else None
    if document is None:
        kind = STATUS_BY_CODE.get(error.code, _INTERNAL)[1]
        message = str(error) if error.code != "internal" else "Stoker failed internally; its log has the details"
        document = {
            "error": {
                "message": message,
                "type": kind,
                "param": error.param,
                "code": error.code,
                "source": source_of(error),
            }
        }
    if is_anthropic:
        document = {"type": "error", **document}
    return orjson.dumps(document)


def _engine_words(error: EngineFailed) -> dict[str, Any]:
    """Return the engine's own document with its speaker named, or its bare text in an envelope."""
    try:
        document = orjson.loads(error.body)
    except orjson.JSONDecodeError:
        document = None
    if isinstance(document, dict) and isinstance(document.get("error"), dict):
        document["error"].setdefault("source", "engine")
        return document
    message = error.body[:_MAX_ENGINE_WORDS].decode("utf-8", "replace")
    if isinstance(document, dict):
        # vLLM's older shape is {"object": "error", "message": …}; others say {"detail": …}.
        words = document.get("message") or document.get("detail") or document.get("error")
        message = words if isinstance(words, str) else message
    kind = "invalid_request_error" if error.status is not None and error.status < 500 else "engine_error"
    return {"error": {"message": message, "type": kind, "param": None, "code": error.status, "source": "engine"}}


def error_event(error: StokerError, *, is_anthropic: bool = False, has_event_name: bool = False) -> bytes:
    """Write the SSE event that ends a broken stream; no `[DONE]` follows it."""
    name = b"event: error\n" if has_event_name else b""
    return name + b"data: " + envelope(error, is_anthropic=is_anthropic) + b"\n\n"
