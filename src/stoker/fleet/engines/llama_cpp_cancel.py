"""What llama.cpp computed for a request that was cancelled, to the token. Asks the engine's `/slots`.

How the server behaves, measured with xllamacpp 2026.10.11549:

- It looks at a closed connection when it writes the next token of a stream, or when nothing at all happened in the
  engine for a second (`HTTP_POLLING_SECONDS`). *Any* answer restarts that second, one to `/slots` too: whoever asks
  more often than once a second keeps a cancelled request alive to its last token.
- It stops between two batches (`n_batch` tokens), not within one.
- Its counters then hold what was computed: the whole prompt and every generated token, or the batches that were done.
- A slot at rest still tells how many tokens it holds: prompt and generated tokens but the last one, which was sampled
  and never computed. So output = held − input + 1, and a slot that holds less than the prompt generated nothing.
- `params` of a slot are those of its last request, so a number that `prepare` put there tells whose tokens these are.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from stoker.fleet.engines.health import get, post
from stoker.fleet.ports import Endpoint, Surface

TAG = "n_discard"
"""A request field that `/slots` shows and that means nothing, since contexts are never shifted (`ctx_shift`)."""

_QUIET_S = 1.1
_ANSWER_ARRIVES_S = 0.05
_EARLY_LOOK_S = 0.01
_MAX_EARLY_LOOKS = 20
_STREAM_LOOK_S = 0.02
_MAX_STREAM_LOOKS = 25
"""A stream whose next token is this late is treated like any request that has nothing to write."""
_MAX_STRANGE_LOOKS = 2
_ANSWER_LIMIT_S = 20.0
"""`/slots` is answered between two batches."""
_TIMINGS = b'"timings":'


@dataclass(frozen=True, slots=True)
class _Slot:
    """One entry of `/slots`; `tag` is the mark of the request that it served last, `computed` is of the prompt."""

    is_processing: bool
    held_tokens: int
    computed_tokens: int
    cached_tokens: int
    decoded_tokens: int
    tag: int | None

    @property
    def has_not_begun(self) -> bool:
        """Whether nothing of the prompt was looked at yet, neither in the cache nor by the model, as far as is seen."""
        return self.is_processing and not (self.computed_tokens or self.cached_tokens or self.decoded_tokens)


async def count_after_cancel(
    endpoint: Endpoint,
    slot_index: int,
    surface: Surface,
    body: Mapping[str, Any],
    last_event: bytes,
    close: Callable[[], None],
) -> tuple[int, int, int] | None:
    """Close, wait until the slot is at rest and return input, cached input and output tokens; None when not known.

    The slot must still be this request's.

    Args:
        close: ends the request's connection; called once the slot was looked at, since a slot at rest no longer tells
            what was cached.
        body: the request as it was sent, with its tag.
        last_event: the last streamed event that arrived, with the engine's own `timings`; empty without one.

    Raises:
        OSError, TimeoutError: the engine does not answer. The caller bounds the wait.
    """
    input_tokens, cached_tokens = _told(last_event)
    num_looks = num_strange = 0
    while True:
        slot = await _look(endpoint, slot_index)
        if num_looks == 0 and cached_tokens is None:
            slot = await _look_until_begun(endpoint, slot_index, slot, body.get(TAG))
        close()
        num_looks += 1
        if TAG in body and slot.tag != body[TAG]:
            num_strange += 1
            if num_strange > _MAX_STRANGE_LOOKS:
                return (0, 0, 0)  # It never came as far as the slot.
        elif not slot.is_processing:
            break
        else:
            cached_tokens = slot.cached_tokens if cached_tokens is None else cached_tokens
            if input_tokens is None and slot.decoded_tokens:
                input_tokens = slot.computed_tokens + slot.cached_tokens
        is_streaming = last_event != b"" and num_looks < _MAX_STREAM_LOOKS
        await asyncio.sleep(_STREAM_LOOK_S if is_streaming else _QUIET_S)
    if input_tokens is None:
        input_tokens = await _input_tokens(endpoint, surface, body)
    if input_tokens is None:
        return None
    cached_tokens = min(cached_tokens or 0, input_tokens)
    if slot.held_tokens < input_tokens:
        return (slot.held_tokens, min(cached_tokens, slot.held_tokens), 0)
    return (input_tokens, cached_tokens, slot.held_tokens - input_tokens + 1)


async def _look_until_begun(endpoint: Endpoint, slot_index: int, slot: _Slot, tag: int | None) -> _Slot:
    """Look again, while the connection is open, until the request's prompt was begun or its answer is on its way."""
    for _ in range(_MAX_EARLY_LOOKS):
        if tag is None or slot.tag == tag:
            break
        # Still between the engine's HTTP thread and the slot.
        await asyncio.sleep(_EARLY_LOOK_S)
        slot = await _look(endpoint, slot_index)
    if slot.has_not_begun:
        # Only just put into the slot. The next look is answered behind the batch that begins the prompt.
        slot = await _look(endpoint, slot_index)
    if not slot.is_processing:
        # Done already, perhaps: only the answer, on its way now, still tells what was cached.
        await asyncio.sleep(_ANSWER_ARRIVES_S)
    return slot


def _told(event: bytes) -> tuple[int | None, int | None]:
    """Return input and cached tokens from an event's `timings`."""
    start = event.find(_TIMINGS)
    if start < 0:
        return None, None
    try:
        timings = json.JSONDecoder().raw_decode(event[start + len(_TIMINGS) :].decode())[0]
        cached = int(timings["cache_n"])
        return int(timings["prompt_n"]) + cached, cached
    except (ValueError, KeyError, TypeError):
        return None, None


async def _look(endpoint: Endpoint, slot_index: int) -> _Slot:
    _, answer = await get(endpoint, "/slots", limit_s=_ANSWER_LIMIT_S)
    for entry in json.loads(answer):
        if entry["id"] == slot_index:
            decoding = entry.get("next_token") or [{}]
            return _Slot(
                is_processing=bool(entry["is_processing"]),
                held_tokens=int(entry.get("n_prompt_tokens", 0)),
                computed_tokens=int(entry.get("n_prompt_tokens_processed", 0)),
                cached_tokens=int(entry.get("n_prompt_tokens_cache", 0)),
                decoded_tokens=int(decoding[0].get("n_decoded", 0)),
                tag=(entry.get("params") or {}).get(TAG),
            )
    raise ConnectionError(f"the engine has no slot {slot_index}")


async def _input_tokens(endpoint: Endpoint, surface: Surface, body: Mapping[str, Any]) -> int | None:
    """Have the engine count a prompt without computing it; None where it has no way to."""
    prompt = body.get("prompt")
    if surface == "completions" and isinstance(prompt, list):
        return len(prompt) if prompt and all(isinstance(token, int) for token in prompt) else None
    if surface == "completions" and isinstance(prompt, str):
        question = {"content": prompt, "add_special": True, "parse_special": True}
        answer = await _post(endpoint, "/tokenize", question)
        return len(answer["tokens"]) if answer else None
    routes: dict[Surface, str] = {
        "chat.completions": "/v1/chat/completions/input_tokens",
        "responses": "/v1/responses/input_tokens",
        "messages": "/v1/messages/count_tokens",
    }
    if surface not in routes:
        return None
    answer = await _post(endpoint, routes[surface], body)
    return int(answer["input_tokens"]) if answer else None


async def _post(endpoint: Endpoint, path: str, body: Mapping[str, Any]) -> dict[str, Any] | None:
    status, answer = await post(endpoint, path, json.dumps(body).encode(), limit_s=_ANSWER_LIMIT_S)
    if status != 200:
        return None
    read = json.loads(answer)
    return read if isinstance(read, dict) else None
