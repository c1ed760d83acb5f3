"""One client request on its way: what it holds, what it has seen, and the rows it leaves. Calls the recorder."""

from __future__ import annotations

from asyncio import Future
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any, Final

from stoker.fleet.ports import DeploymentFacts, LeaseEnd, SlotLease, SlotLeases, Surface
from stoker.gateway.domain.access import Principal
from stoker.gateway.headers import block_headers
from stoker.gateway.interruption import DeadlineWatch, Interruption
from stoker.gateway.metrics import DeploymentMetrics
from stoker.gateway.openai.request import ClientRequest
from stoker.gateway.openai.usage import Usage, find_usage
from stoker.gateway.streaming import EventTap
from stoker.gateway.upstream import UpstreamConnection
from stoker.gateway.wire import ClientWire
from stoker.ledger.ports import Recorder
from stoker.ledger.records import Attempt, Outcome, RequestIntent, Settlement
from stoker.money import TokenPrice

Send = Callable[[MutableMapping[str, Any]], Awaitable[None]]
STATUS_CLIENT_LEFT: Final = 499  # nobody saw a status; nginx's convention, in the ledger only


class Call:
    """Written by its own task alone. Times are monotonic seconds unless they end in `_at_us`.

    Attributes:
        received_s: when the whole request was in; time to first token counts from here.
        deadline_s: when it is of no more use.
        begun: the intent's future, None until it was queued.
        has_started: the client has been sent a status.
        sent: the body of the attempt under way, as its engine got it; None until one was sent.
    """

    __slots__ = (
        "_cold_start_s", "_queue_s", "_wire", "arrived_at_us", "arrived_s", "attempt_started_s", "attempts", "begun",
        "counters", "deadline_s", "excluded", "facts", "first_output_s", "granted_s", "has_started", "interruption",
        "is_settled", "last_output_s", "lease", "num_outputs", "price", "principal", "received_s", "request",
        "request_id", "response", "send", "sent", "session", "surface", "tap", "usage",
    )  # fmt: skip

    def __init__(
        self,
        *,
        request_id: str,
        arrived_s: float,
        arrived_at_us: int,
        received_s: float,
        deadline_s: float,
        principal: Principal,
        facts: DeploymentFacts,
        surface: Surface,
        request: ClientRequest,
        session: str | None,
        price: TokenPrice | None,
        counters: DeploymentMetrics,
        wire: ClientWire | None,
        send: Send,
        deadlines: DeadlineWatch,
    ) -> None:
        self.request_id = request_id
        self.arrived_s = arrived_s
        self.arrived_at_us = arrived_at_us
        self.received_s = received_s
        self.deadline_s = deadline_s
        self.principal = principal
        self.facts = facts
        self.surface = surface
        self.request = request
        self.sent: dict[str, Any] | None = None
        self.session = session
        self.price = price
        self.counters = counters
        self._wire = wire
        self.send = send
        self.interruption = Interruption(deadlines)
        self.begun: Future[None] | None = None
        self.is_settled = False
        self.has_started = False
        self.attempts: tuple[Attempt, ...] = ()
        self.excluded: frozenset[str] = frozenset()
        self.lease: SlotLease | None = None
        self.response: UpstreamConnection | None = None
        self.tap: EventTap | None = None
        self.usage: Usage | None = None
        self.attempt_started_s = self.granted_s = received_s
        self._queue_s = self._cold_start_s = 0.0
        self.first_output_s: float | None = None
        self.last_output_s = 0.0
        self.num_outputs = 0
        counters.num_in_flight += 1

    # -------------------------------------------------------------------------------------------- slots

    def hold(self, lease: SlotLease, now_s: float) -> None:
        """Note a granted slot."""
        self.lease = lease
        self.granted_s = now_s
        self._queue_s += lease.queue_s
        self._cold_start_s += lease.cold_start_s

    def end_attempt(
        self, leases: SlotLeases, outcome: Outcome, code: str | None, now_s: float, *, is_suspect: bool = False
    ) -> None:
        """Close the engine's connection unless it was read to the end, give the slot back, note the attempt."""
        lease, response = self.lease, self.response
        if self.usage is None and self.tap is not None:
            # A stream that was cut may tell so far: llama.cpp can add its counters to every event.
            self.usage = self.tap.usage or find_usage(self.tap.last_event)
        self.lease = self.response = None
        if response is not None:
            response.finish()
        usage = self.usage
        if lease is not None:
            leases.release(
                lease,
                LeaseEnd(
                    now_s - self.granted_s,
                    usage.input_tokens if usage is not None else None,
                    usage.output_tokens if usage is not None else None,
                    is_suspect,
                ),
            )
        self.attempts += (
            Attempt(
                len(self.attempts) + 1,
                lease.replica_id if lease is not None else None,
                lease.tier if lease is not None else self.facts.tier,
                self._at_us(self.attempt_started_s),
                self._at_us(now_s),
                lease.queue_s if lease is not None else now_s - self.attempt_started_s,
                lease.cold_start_s if lease is not None else 0.0,
                outcome,
                code,
            ),
        )
        if lease is None:
            self._queue_s += now_s - self.attempt_started_s
        self.attempt_started_s = now_s

    # -------------------------------------------------------------------------------------------- answer

    @property
    def queue_s(self) -> float:
        return self._queue_s

    @property
    def cold_start_s(self) -> float:
        return self._cold_start_s

    def note_output(self, now_s: float) -> None:
        """Note that output leaves now."""
        if self.first_output_s is None:
            self.first_output_s = now_s
        self.last_output_s = now_s
        self.num_outputs += 1

    async def answer(self, status: int, block: bytes, body: bytes) -> None:
        """Send a whole answer."""
        wire = self._wire
        if wire is None:
            await self.start(status, block, len(body))
            await self.write(body, has_more=False)
            return
        self.has_started = True
        if wire.is_full:
            await wire.drain()
        wire.start(status, block, len(body))
        wire.write(body, has_more=False)

    async def start(self, status: int, block: bytes, content_length: int | None) -> None:
        """Send status and headers; `content_length` None means that the length is not known."""
        self.has_started = True
        if self._wire is not None:
            self._wire.start(status, block, content_length)
            return
        headers = block_headers(block, content_length)
        await self.send({"type": "http.response.start", "status": status, "headers": headers})

    async def write(self, body: bytes, *, has_more: bool) -> None:
        """Send a part of the body, waiting while the client reads too slowly."""
        wire = self._wire
        if wire is None:
            await self.send({"type": "http.response.body", "body": body, "more_body": has_more})
            return
        if wire.is_full:
            await wire.drain()
        wire.write(body, has_more=has_more)

    def price_nanousd(self, usage: Usage | None) -> int | None:
        """Return what tokens cost; None means unpriced."""
        if self.price is None:
            return None
        if usage is None:
            return 0
        return self.price.cost_nanousd(
            input_tokens=usage.input_tokens or 0,
            cached_input_tokens=usage.cached_input_tokens or 0,
            output_tokens=usage.output_tokens or 0,
        )

    # -------------------------------------------------------------------------------------------- ledger

    def keep_response(self, connection: UpstreamConnection) -> None:
        """Hold a connection whose answer was still awaited when the call was cancelled; `abort` it in the end."""
        self.response = connection

    def begin(self, recorder: Recorder) -> Future[None]:
        """Queue the intent, once."""
        if self.begun is None:
            facts = self.facts
            self.begun = recorder.begin(
                RequestIntent(
                    self.request_id,
                    self.arrived_at_us,
                    self.principal.key_id,
                    self.principal.tenant,
                    facts.name,
                    facts.tier,
                    self.surface,
                    self.request.is_stream,
                    self.request.max_output_tokens,
                )
            )
        return self.begun

    def settle(
        self, recorder: Recorder, outcome: Outcome, status: int, code: str | None, now_s: float
    ) -> Future[None] | None:
        """Queue the settlement, once; nothing interrupts the call afterwards. Returns None the second time."""
        self.interruption.disarm()
        if self.is_settled:
            return None
        self.begin(recorder)
        self.is_settled = True
        usage, is_exact = self.usage, True
        if usage is None and self.tap is not None and self.tap.num_events:
            # The prompt was processed and tokens came out, but nobody told how many.
            usage = Usage(self.request.estimated_input_tokens, 0, self.tap.num_events)
            is_exact = False
        elif usage is not None and (usage.input_tokens is None or usage.output_tokens is None):
            counted = Usage(self.request.estimated_input_tokens, 0, self.tap.num_events if self.tap is not None else 0)
            usage, is_exact = counted.merged(usage), False
        first_s = self.first_output_s
        ttft_s = first_s - self.received_s if first_s is not None else None
        itl_s = None
        if first_s is not None and self.num_outputs > 1:
            itl_s = (self.last_output_s - first_s) / (self.num_outputs - 1)
        duration_s = now_s - self.arrived_s
        self._count(outcome, usage, ttft_s, duration_s)
        return recorder.settle(
            Settlement(
                self.request_id,
                self._at_us(now_s),
                outcome,
                status,
                usage.input_tokens if usage is not None else None,
                usage.output_tokens if usage is not None else None,
                usage.cached_input_tokens if usage is not None else None,
                is_exact and usage is not None,
                self._queue_s,
                self._cold_start_s,
                ttft_s,
                itl_s,
                duration_s,
                self.price_nanousd(usage),
                code,
                self.attempts,
            )
        )

    def _count(self, outcome: Outcome, usage: Usage | None, ttft_s: float | None, duration_s: float) -> None:
        counters = self.counters
        counters.num_in_flight -= 1
        counters.outcomes[outcome] = counters.outcomes.get(outcome, 0) + 1
        counters.queue_s += self._queue_s
        counters.duration.observe(duration_s)
        if self._cold_start_s > 0:
            counters.num_cold_starts += 1
        if ttft_s is not None:
            counters.ttft.observe(ttft_s)
        if usage is not None:
            counters.input_tokens += usage.input_tokens or 0
            counters.cached_input_tokens += usage.cached_input_tokens or 0
            counters.output_tokens += usage.output_tokens or 0

    def _at_us(self, at_s: float) -> int:
        return self.arrived_at_us + int((at_s - self.arrived_s) * 1_000_000)


def is_durable(written: Future[None] | None) -> bool:
    """Tell whether a row is on stable storage. Raises `LedgerUnavailable` when it cannot be."""
    if written is None:
        return True
    if not written.done():
        return False
    if not written.cancelled():  # its waiter was interrupted; the write went on, and the next row's fate tells its own
        written.result()
    return True


async def durable(written: Future[None] | None) -> None:
    """Wait until a row is on stable storage; being cancelled leaves the write alone. Raises `LedgerUnavailable`."""
    if written is not None and not is_durable(written):
        await written


def forget(written: Future[None] | None) -> None:
    """Leave a row to the recorder: its failure has nobody left to be told."""
    if written is not None:
        written.add_done_callback(_retrieve)


def _retrieve(written: Future[None]) -> None:
    if not written.cancelled():
        written.exception()
