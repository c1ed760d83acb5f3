"""Copies an engine's answer out to the client, whole or as a stream, and sends errors. Touches both connections."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Final, Protocol

from stoker.errors import EngineFailed, StokerError
from stoker.fleet.ports import SlotLease
from stoker.gateway.call import Call, Send, durable, is_durable
from stoker.gateway.errors import envelope, status_of
from stoker.gateway.headers import answer_block, error_headers
from stoker.gateway.openai.surfaces import SHAPES
from stoker.gateway.openai.usage import Usage, find_usage, find_usage_in_body
from stoker.gateway.streaming import EventTap
from stoker.gateway.upstream import UpstreamConnection, UpstreamFailed
from stoker.ledger.records import Outcome
from stoker.money import format_usd

MAX_WHOLE_BYTES: Final = 1024 * 1024  # larger answers (embeddings) are copied through in pieces
MAX_ERROR_BYTES: Final = 256 * 1024
_EDGE_BYTES: Final = 16 * 1024  # of a large answer's head and tail, where engines put the usage
_STREAM_END_S: Final = 1.0  # between the final event and the end of the response


class Ends(Protocol):
    """What copying needs of whoever carries the call."""

    now_s: Callable[[], float]

    def complete(
        self, call: Call, outcome: Outcome, status: int, code: str | None = None
    ) -> asyncio.Future[None] | None: ...


async def send_error(send: Send, error: StokerError, request_id: str, *, is_anthropic: bool = False) -> None:
    """Answer with an error envelope."""
    body = envelope(error, is_anthropic=is_anthropic)
    headers = error_headers(error, request_id, len(body))
    await send({"type": "http.response.start", "status": status_of(error), "headers": headers})
    await send({"type": "http.response.body", "body": body, "more_body": False})


async def read_error(response: UpstreamConnection) -> EngineFailed:
    """Read an engine's error answer and return it as the exception that carries its status and words."""
    body = bytearray()
    while len(body) <= MAX_ERROR_BYTES and (piece := await response.read()):
        body += piece
    retry_after = response.retry_after
    return EngineFailed(
        f"the engine answered {response.status}",
        status=response.status,
        body=bytes(body[:MAX_ERROR_BYTES]),
        retry_after_s=float(retry_after) if retry_after is not None and retry_after.isdigit() else None,
    )


async def answer_whole(ends: Ends, call: Call, lease: SlotLease, response: UpstreamConnection) -> None:
    """Copy an answer that is not a stream; nothing leaves before intent and settlement are durable.

    Raises:
        UpstreamFailed: truncated.
        LedgerUnavailable: intent or settlement could not be stored.
    """
    body = await response.read()
    if not response.is_complete:
        pieces, size = [body], len(body)
        while piece := await response.read():
            pieces.append(piece)
            size += len(piece)
            if size > MAX_WHOLE_BYTES:
                await _answer_large(ends, call, lease, response, b"".join(pieces))
                return
        body = b"".join(pieces)
    status, content_type = response.status, response.content_type  # the connection is another's once it is given back
    usage = call.usage = find_usage_in_body(body)
    call.note_output(ends.now_s())
    settled = ends.complete(call, "completed", status)
    if not is_durable(call.begun):
        await durable(call.begun)
    if not is_durable(settled):
        await durable(settled)
    block = answer_block(
        call.request_id,
        lease,
        content_type=content_type,
        queue_s=call.queue_s,
        cold_start_s=call.cold_start_s,
        price_nanousd=call.price_nanousd(usage) if usage is not None else None,
    )
    await call.answer(status, block, body)


async def _answer_large(ends: Ends, call: Call, lease: SlotLease, response: UpstreamConnection, pending: bytes) -> None:
    """Copy a large answer in pieces, one behind, so that the last waits for the settlement."""
    await durable(call.begun)
    head, tail = pending[:_EDGE_BYTES], b""
    await _start(call, lease, response, content_length=response.content_length)
    status = response.status
    while piece := await response.read():
        call.note_output(ends.now_s())
        await call.write(pending, has_more=True)
        tail = (tail + pending)[-_EDGE_BYTES:]
        pending = piece
    call.usage = find_usage(tail + pending[-_EDGE_BYTES:]) or find_usage(head)
    await durable(ends.complete(call, "completed", status))
    await call.write(pending, has_more=False)


async def answer_stream(ends: Ends, call: Call, lease: SlotLease, response: UpstreamConnection) -> None:
    """Copy server-sent events; the final event waits for the settlement.

    Raises:
        UpstreamFailed: cut before its end.
        LedgerUnavailable: intent or settlement could not be stored.
    """
    request = call.request

    def extension(usage: Usage) -> bytes:
        price = call.price_nanousd(usage)
        cost = b"null" if price is None else format_usd(price).encode()
        return b'"x_stoker":{"request_id":"%b","served_by":"%b","tier":"%b","cost_usd":%b}' % (
            call.request_id.encode(),
            lease.replica_id.encode(),
            lease.tier.encode(),
            cost,
        )

    tap = call.tap = EventTap(
        SHAPES[call.surface],
        hides_usage=not request.wants_usage,
        extension=extension if request.wants_usage else None,
    )
    status = response.status
    while piece := await response.read():
        leaving = tap.feed(piece)
        if leaving:
            if not call.has_started:
                await durable(call.begun)
                await _start(call, lease, response)
            call.note_output(ends.now_s())
            await call.write(leaving, has_more=True)
        if tap.is_final:
            await _drain(response)
            break
    else:
        tap.finish()
    if not call.has_started:
        await durable(call.begun)
        await _start(call, lease, response)
    call.usage = tap.usage
    outcome: Outcome = "engine_error" if tap.has_error else "completed"
    settled = ends.complete(call, outcome, status, "engine_failed" if tap.has_error else None)
    await durable(settled)
    await call.write(tap.held, has_more=False)


async def _start(
    call: Call, lease: SlotLease, response: UpstreamConnection, *, content_length: int | None = None
) -> None:
    block = answer_block(
        call.request_id,
        lease,
        content_type=response.content_type,
        queue_s=call.queue_s,
        cold_start_s=call.cold_start_s,
    )
    await call.start(response.status, block, content_length)


async def _drain(response: UpstreamConnection) -> None:
    """Read what little follows the final event, so that the engine is done and its connection can be used again."""
    if response.is_complete:
        await response.read()
        return
    with contextlib.suppress(TimeoutError, UpstreamFailed):
        async with asyncio.timeout(_STREAM_END_S):
            while await response.read():
                pass
