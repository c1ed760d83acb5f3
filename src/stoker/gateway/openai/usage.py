"""Token counts as engines report them, found without parsing what surrounds them. Pure."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import orjson

# An object with at most one level of objects inside; keys inside JSON *strings* have escaped quotes and cannot match.
_OBJECT = rb"\s*:\s*(\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\})"
_USAGE = re.compile(rb'"usage"' + _OBJECT)
_TIMINGS = re.compile(rb'"timings"' + _OBJECT)
_SMALL_BODY_BYTES = 8192  # below this, parsing the whole body is the quickest way
_MAX_LOOKS = 8  # occurrences of the key that are tried, from the last


@dataclass(slots=True)
class Usage:
    """Tokens of one request; None where an event did not tell.

    Attributes:
        input_tokens: all input tokens, `cached_input_tokens` included.
    """

    input_tokens: int | None
    cached_input_tokens: int | None
    output_tokens: int | None

    def merged(self, later: Usage) -> Usage:
        """Return the later report, completed by this one where it is silent (Anthropic reports in two events)."""
        return Usage(
            later.input_tokens if later.input_tokens is not None else self.input_tokens,
            later.cached_input_tokens if later.input_tokens is not None else self.cached_input_tokens,
            later.output_tokens if later.output_tokens is not None else self.output_tokens,
        )


def find_usage(data: bytes) -> Usage | None:
    """Return the last usage report in `data` (a JSON body, an SSE event or a cut from either), None without one.

    Understands OpenAI's `prompt_tokens`, the Responses API's and Anthropic's `input_tokens`, and llama.cpp's `timings`
    where there is no `usage` (infill). Source: llama.cpp tools/server/server-task.cpp; OpenAI and Anthropic API
    references.
    """
    found = _last_object(data, b'"usage"', _USAGE)
    usage = _read_usage(found) if found is not None else None
    if usage is not None:
        return usage
    found = _last_object(data, b'"timings"', _TIMINGS)
    return _read_timings(found) if found is not None else None


def find_usage_in_body(body: bytes) -> Usage | None:
    """Return the usage report of a whole JSON body, None without one."""
    if len(body) <= _SMALL_BODY_BYTES:
        try:
            found = orjson.loads(body)["usage"]
        except (orjson.JSONDecodeError, KeyError, TypeError):
            found = None
        if isinstance(found, dict) and (usage := _read_usage(found)) is not None:
            return usage
    return find_usage(body)


def _last_object(data: bytes, key: bytes, pattern: re.Pattern[bytes]) -> dict[str, Any] | None:
    end = len(data)
    for _ in range(_MAX_LOOKS):
        at = data.rfind(key, 0, end)
        if at < 0:
            return None
        if match := pattern.match(data, at):
            try:
                found = orjson.loads(match[1])
            except orjson.JSONDecodeError:
                return None
            return found if isinstance(found, dict) else None
        end = at
    return None


def _count(value: object) -> int | None:
    return value if type(value) is int and value >= 0 else None


def _read_usage(found: dict[str, Any]) -> Usage | None:
    if "prompt_tokens" in found:
        total = _count(found["prompt_tokens"])
        output = _count(found.get("completion_tokens"))
        details = found.get("prompt_tokens_details")
        cached = _count(details.get("cached_tokens")) if isinstance(details, dict) else None
        if total is None:
            return None
        # An embeddings report has no completion_tokens: nothing was generated.
        return Usage(total, min(cached or 0, total), output or 0)
    total, output = _count(found.get("input_tokens")), _count(found.get("output_tokens"))
    if total is None and output is None:
        return None
    details = found.get("input_tokens_details")
    if isinstance(details, dict):
        cached = _count(details.get("cached_tokens")) or 0
        return Usage(total, min(cached, total or 0), output)
    if total is None:
        return Usage(None, None, output)
    # Anthropic counts cached input beside input_tokens, not within.
    cached = _count(found.get("cache_read_input_tokens")) or 0
    return Usage(total + cached + (_count(found.get("cache_creation_input_tokens")) or 0), cached, output)


def _read_timings(found: dict[str, Any]) -> Usage | None:
    computed, output = _count(found.get("prompt_n")), _count(found.get("predicted_n"))
    if computed is None or output is None:
        return None
    cached = _count(found.get("cache_n")) or 0
    return Usage(computed + cached, cached, output)
