"""What llama.cpp computed for a request that was cancelled, to the token. Asks the engine's `/slots`.

The server notices a closed connection at its next write, or by a look each second while it has nothing to write, and
until then goes on. Its own counters then hold the whole prompt (nothing, when the prompt was not finished) and every
generated token. A slot at rest still tells how many tokens it holds: the prompt's and the generated ones but the last.

Source: measured with xllamacpp 2026.10.11549 over 22 cancelled requests: tokens = input + output - 1 in each.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable
from dataclasses import dataclass

from stoker.fleet.engines.health import get
from stoker.fleet.ports import Endpoint

_FIRST_LOOK_S = 0.01
_NUM_FIRST_LOOKS = 40
_LOOK_RATIO = 1.5
_MAX_LOOK_S = 0.25
_TIMINGS = b'"timings":'


@dataclass(frozen=True, slots=True)
class _Slot:
    """One entry of `/slots`; counts are 0 where the engine has none yet."""

    is_processing: bool
    held_tokens: int
    computed_tokens: int
    cached_tokens: int
    decoded_tokens: int

    @property
    def input_tokens(self) -> int:
        """Length of the prompt of the request that is being processed."""
        return self.computed_tokens + self.cached_tokens if self.decoded_tokens else self.held_tokens


async def count_after_cancel(
    endpoint: Endpoint, slot_index: int, last_event: bytes, close: Callable[[], None]
) -> tuple[int, int, int] | None:
    """Wait until the slot is at rest and return input, cached input and output tokens; None when they are not known.

    They are not when the slot is never seen at work: then the answer has come, or will never be begun.

    Args:
        close: ends the request's connection; called once the slot was looked at.
        last_event: the last streamed event that arrived, with the engine's own `timings`; empty without one.

    Raises:
        OSError, TimeoutError: the engine does not answer. The caller bounds the wait.
    """
    told = _told(last_event)
    slot = await _look(endpoint, slot_index)
    if told is None:
        # The request may still be on its way from the engine's HTTP thread to the slot.
        for _ in range(_NUM_FIRST_LOOKS):
            if slot.is_processing:
                break
            await asyncio.sleep(_FIRST_LOOK_S)
            slot = await _look(endpoint, slot_index)
        else:
            close()
            return None
    close()
    input_tokens, cached_tokens, output_tokens = told or (slot.input_tokens, slot.cached_tokens, 0)
    pause_s = _FIRST_LOOK_S
    while slot.is_processing:
        await asyncio.sleep(pause_s)
        pause_s = min(_MAX_LOOK_S, pause_s * _LOOK_RATIO)
        slot = await _look(endpoint, slot_index)
        if told is None:
            cached_tokens = max(cached_tokens, slot.cached_tokens)
    if slot.held_tokens < input_tokens:
        return (0, 0, 0)  # Stopped within the prompt, of which the engine then counts nothing.
    return (input_tokens, cached_tokens, max(output_tokens, slot.held_tokens - input_tokens + 1))


def _told(event: bytes) -> tuple[int, int, int] | None:
    start = event.find(_TIMINGS)
    if start < 0:
        return None
    try:
        timings = json.JSONDecoder().raw_decode(event[start + len(_TIMINGS) :].decode())[0]
        cached = int(timings["cache_n"])
        return int(timings["prompt_n"]) + cached, cached, int(timings["predicted_n"])
    except (ValueError, KeyError, TypeError):
        return None


async def _look(endpoint: Endpoint, slot_index: int) -> _Slot:
    _, body = await get(endpoint, "/slots", limit_s=10.0)
    for entry in json.loads(body):
        if entry["id"] == slot_index:
            decoding = entry.get("next_token") or [{}]
            return _Slot(
                is_processing=bool(entry["is_processing"]),
                held_tokens=int(entry.get("n_prompt_tokens", 0)),
                computed_tokens=int(entry.get("n_prompt_tokens_processed", 0)),
                cached_tokens=int(entry.get("n_prompt_tokens_cache", 0)),
                decoded_tokens=int(decoding[0].get("n_decoded", 0)),
            )
    raise ConnectionError(f"the engine has no slot {slot_index}")
