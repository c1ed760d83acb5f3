"""The way of an inference request: key, deployment, slot, engine, bytes back, rows. Drives the ports of other rooms.

The steps, in order (DESIGN §2): (1) authenticate, (2) read and check the body, (3) find the deployment, (4) hold a
slot, (5) queue the intent, (6) post to the engine, (7) copy the answer out once the intent is durable, (8) give the
slot back, (9) settle, (10) let the last byte go once the settlement is durable.
"""

from __future__ import annotations

import asyncio
import logging
import math
from collections.abc import Mapping, MutableMapping
from typing import Any, Final

import orjson

from stoker.clock import Clock
from stoker.config.settings import ServerSettings, TokenPriceSettings
from stoker.errors import (
    BadRequest,
    ContextTooLong,
    DeadlineExceeded,
    EngineFailed,
    Forbidden,
    LedgerUnavailable,
    StokerError,
    UnknownModel,
)
from stoker.fleet.ports import DeploymentFacts, Directory, LeaseAsk, SlotLease, SlotLeases, Surface
from stoker.gateway.answers import answer_stream, answer_whole, read_error, send_error
from stoker.gateway.auth import Keyring
from stoker.gateway.call import STATUS_CLIENT_LEFT, Call, Send, durable, forget
from stoker.gateway.domain.access import Principal
from stoker.gateway.domain.affinity import session_key
from stoker.gateway.domain.nearest import nearest_names
from stoker.gateway.domain.retry import decide_retry
from stoker.gateway.errors import UnsupportedSurface, error_event, status_of
from stoker.gateway.headers import is_event_stream
from stoker.gateway.interruption import DeadlineWatch
from stoker.gateway.metrics import GatewayMetrics
from stoker.gateway.openai.request import (
    OBVIOUS_BYTES_PER_TOKEN,
    ClientLeft,
    ClientRequest,
    Receive,
    check_media,
    parse_request,
    read_body,
    text_bytes,
    with_usage,
)
from stoker.gateway.openai.surfaces import SHAPES
from stoker.gateway.openai.usage import Usage, find_usage, find_usage_in_body
from stoker.gateway.pool import UpstreamPool
from stoker.gateway.wire import wire_of
from stoker.ids import new_request_id
from stoker.ledger.ports import Recorder
from stoker.ledger.records import Outcome
from stoker.money import TokenPrice, nanousd

_WALL_CLOCK_S: Final = 1.0
USAGE_AFTER_CANCEL_S: Final = 30.0  # an engine may notice a second late, and ends the prompt it is in first

_log = logging.getLogger("stoker.gateway")


class Inference:
    """Serves every inference surface. One instance serves all requests; each request's state is in its `Call`."""

    def __init__(
        self,
        *,
        leases: SlotLeases,
        directory: Directory,
        recorder: Recorder,
        keyring: Keyring,
        clock: Clock,
        settings: ServerSettings,
        metrics: GatewayMetrics,
        pool: UpstreamPool,
    ) -> None:
        self._leases = leases
        self._directory = directory
        self._recorder = recorder
        self._keyring = keyring
        self._clock = clock
        self.now_s = clock.monotonic_s
        self._wall_read_s = -math.inf
        self._wall_offset_us = 0
        self._max_body_bytes = settings.max_body
        self._request_timeout_s = settings.request_timeout
        self._metrics = metrics
        self._pool = pool
        self._deadlines = DeadlineWatch()
        self._prices: dict[str, tuple[TokenPriceSettings, TokenPrice]] = {}

    async def handle(
        self,
        surface: Surface,
        headers: Mapping[bytes, bytes],
        scope: MutableMapping[str, Any],
        receive: Receive,
        send: Send,
    ) -> None:
        """Serve one request to its end; every expected failure becomes an answer."""
        arrived_s = self.now_s()
        arrived_at_us = self._wall_us(arrived_s)
        request_id = new_request_id(arrived_at_us // 1000)
        try:
            principal = self._keyring.identify(headers)
            wire = wire_of(scope)
            body = wire.take_body(self._max_body_bytes) if wire is not None else None
            if body is None:
                body = await read_body(receive, headers, self._max_body_bytes)
            request = parse_request(surface, body)
            received_s = self.now_s()
            timeout_s = self._timeout_s(headers)
            facts = self._find(principal, request, surface)
        except StokerError as error:
            self._metrics.count_turned_away(error.code)
            await send_error(send, error, request_id, is_anthropic=SHAPES[surface].is_anthropic)
            return
        except ClientLeft:
            self._metrics.count_turned_away("client_left")
            return
        call = Call(
            request_id=request_id,
            arrived_s=arrived_s,
            arrived_at_us=arrived_at_us,
            received_s=received_s,
            deadline_s=received_s + timeout_s,
            principal=principal,
            facts=facts,
            surface=surface,
            request=request,
            session=session_key(principal.tenant, headers.get(b"x-stoker-session"), request.fields),
            price=self._price(facts),
            counters=self._metrics.of(facts.name, facts.tier),
            wire=wire,
            send=send,
            deadlines=self._deadlines,
        )
        call.interruption.arm(wire, receive, timeout_s=timeout_s)
        try:
            await self._carry(call)
        finally:
            call.interruption.disarm()

    def _wall_us(self, now_s: float) -> int:
        """Return microseconds since the epoch, read from the wall clock once a second and monotonic between."""
        if now_s - self._wall_read_s >= _WALL_CLOCK_S:
            self._wall_read_s = now_s
            self._wall_offset_us = int(self._clock.now().timestamp() * 1_000_000 - now_s * 1_000_000)
        return self._wall_offset_us + int(now_s * 1_000_000)

    # ------------------------------------------------------------------------------------------ before a slot

    def _timeout_s(self, headers: Mapping[bytes, bytes]) -> float:
        asked = headers.get(b"x-stoker-deadline-ms")
        if asked is None:
            return self._request_timeout_s
        if not asked.isdigit() or len(asked) > 12 or int(asked) == 0:
            raise BadRequest("x-stoker-deadline-ms must be a positive number", param="x-stoker-deadline-ms")
        return min(self._request_timeout_s, int(asked) / 1000)

    def visible(self, principal: Principal) -> list[DeploymentFacts]:
        """Return the deployments that this principal may use."""
        return [facts for facts in self._directory.all() if principal.may_use(facts.name, facts.tenants)]

    def _find(self, principal: Principal, request: ClientRequest, surface: Surface) -> DeploymentFacts:
        if request.model is None:
            return self._find_unnamed(principal, surface)
        facts = self._directory.find(request.model)
        if facts is None:
            raise self.unknown_model(principal, request.model)
        return facts

    def unknown_model(self, principal: Principal, name: str) -> UnknownModel:
        """Return the error for a name that does not exist, with the nearest ones that the principal may use."""
        names = [facts.name for facts in self.visible(principal)]
        nearest = nearest_names(name, names)
        mend = f"did you mean {' or '.join(nearest)}?" if nearest else "GET /v1/models lists what there is"
        return UnknownModel(f"the model {name[:128]!r} does not exist here", mend=mend, param="model")

    def _find_unnamed(self, principal: Principal, surface: Surface) -> DeploymentFacts:
        offering = [facts for facts in self.visible(principal) if surface in facts.surfaces]
        if len(offering) == 1:
            return offering[0]
        raise BadRequest(
            f"model is missing and {len(offering)} deployments offer {surface}",
            mend=f"name one of {', '.join(sorted(facts.name for facts in offering))}" if offering else None,
            param="model",
        )

    def _check(self, call: Call) -> None:
        """Refuse what no replica of this deployment should see. Raises `StokerError`."""
        facts, principal, request = call.facts, call.principal, call.request
        if not principal.may_use(facts.name, facts.tenants):
            raise Forbidden(f"this key may not use the deployment {facts.name!r}", param="model")
        # Of a deployment whose model cannot be had no surface is known: the fleet says what is wrong with it.
        if facts.surfaces and call.surface not in facts.surfaces:
            offered = ", ".join(sorted(facts.surfaces - {"tokenize"})) or "nothing"
            raise UnsupportedSurface(
                f"the deployment {facts.name!r} does not offer {call.surface}; it offers {offered}", param="model"
            )
        check_media(request.fields)
        limit = facts.context_tokens
        if limit is not None and request.body_bytes > limit * OBVIOUS_BYTES_PER_TOKEN:
            size_bytes = text_bytes(request.fields)
            if size_bytes > limit * OBVIOUS_BYTES_PER_TOKEN:
                raise ContextTooLong(
                    f"{size_bytes} bytes of text cannot fit the context of {limit} tokens of {facts.name!r}",
                    mend="shorten the messages",
                    param="messages",
                )

    def _price(self, facts: DeploymentFacts) -> TokenPrice | None:
        declared = facts.settings.price
        if declared is None:
            return None
        known = self._prices.get(facts.name)
        if known is not None and known[0] is declared:
            return known[1]
        cached_usd = declared.cached_input_usd_per_million
        price = TokenPrice(
            nanousd(declared.input_usd_per_million),
            nanousd(cached_usd if cached_usd is not None else declared.input_usd_per_million),
            nanousd(declared.output_usd_per_million),
        )
        self._prices[facts.name] = (declared, price)
        return price

    # ------------------------------------------------------------------------------------------ the call

    async def _carry(self, call: Call) -> None:
        """Serve, and turn every way in which that can end into an answer and a settlement."""
        try:
            self._check(call)
            await self._serve(call)
        except StokerError as error:
            await self._fail(call, error)
        except asyncio.CancelledError:
            reason = call.interruption.take()
            if reason is None:
                self._abandon(call, "interrupted")
                raise
            if reason == "timed_out":
                call.interruption.disarm()
                await self._ask_usage_after_cancel(call)
                limit_s = call.deadline_s - call.received_s
                await self._fail(call, DeadlineExceeded(f"the request's limit of {limit_s:g} s passed"))
            else:
                await self._leave(call)
        except Exception as bug:
            _log.exception("request.failed", extra={"request_id": call.request_id})
            await self._fail(call, StokerError(f"{type(bug).__name__}: {bug}"))

    async def _serve(self, call: Call) -> None:
        while True:
            lease = await self._acquire(call)
            call.begin(self._recorder)
            try:
                await self._attempt(call, lease)
            except EngineFailed as failure:
                status = failure.status
                is_suspect = status is None or status >= 500
                self._end(call, _outcome(failure), failure.code, is_suspect=is_suspect)
                decision = decide_retry(
                    status=status,
                    has_body=bool(failure.body),
                    num_attempts=len(call.attempts),
                    has_sent_bytes=call.has_started,
                )
                if not decision.is_retry:
                    raise
                _log.info("attempt.failed: %s; %s", failure.message, decision.reason)
                call.tap = call.usage = None
                call.counters.num_retries += 1
                call.excluded |= {lease.replica_id}
            else:
                return

    async def _acquire(self, call: Call) -> SlotLease:
        lease = await self._leases.acquire(
            LeaseAsk(
                call.request_id,
                call.facts.name,
                call.principal.tenant,
                call.request.estimated_tokens,
                call.deadline_s,
                call.session,
                call.excluded,
            )
        )
        call.hold(lease, self.now_s())
        return lease

    async def _attempt(self, call: Call, lease: SlotLease) -> None:
        engine = lease.engine
        fields = with_usage(call.surface, call.request)
        engine.prepare(call.surface, fields, lease.use)
        call.sent = fields
        response = call.response = await self._pool.post(
            lease.endpoint,
            engine.path(call.surface),
            orjson.dumps(fields),
            is_stream=call.request.is_stream,
            on_cancel=call.keep_response,
        )
        if response.status >= 400:
            raise await read_error(response)
        if is_event_stream(response.content_type):
            await answer_stream(self, call, lease, response)
        else:
            await answer_whole(self, call, lease, response)

    # ------------------------------------------------------------------------------------------ ends

    def _end(self, call: Call, outcome: Outcome, code: str | None, *, is_suspect: bool = False) -> None:
        call.end_attempt(self._leases, outcome, code, self.now_s(), is_suspect=is_suspect)

    def complete(
        self, call: Call, outcome: Outcome, status: int, code: str | None = None
    ) -> asyncio.Future[None] | None:
        """Give the slot back and queue the settlement; the last byte must wait for the returned future."""
        now_s = self.now_s()
        call.end_attempt(self._leases, outcome, code, now_s)
        return call.settle(self._recorder, outcome, status, code, now_s)

    async def _fail(self, call: Call, error: StokerError) -> None:
        """Settle a failed call, tell the client what is true, and never let a begun stream end cleanly."""
        call.interruption.disarm()
        if not call.is_settled:
            outcome = _outcome(error)
            if call.lease is not None or not call.attempts or call.attempts[-1].outcome != outcome:
                self._end(call, outcome, error.code)
            settled = call.settle(self._recorder, outcome, status_of(error), error.code, self.now_s())
            if isinstance(error, LedgerUnavailable):
                forget(settled)
            else:
                try:
                    await durable(call.begun)
                    await durable(settled)
                except LedgerUnavailable as fault:
                    forget(settled)
                    error = fault
        shape = SHAPES[call.surface]
        if not call.has_started:
            call.has_started = True
            await send_error(call.send, error, call.request_id, is_anthropic=shape.is_anthropic)
        elif call.tap is not None:
            event = error_event(error, is_anthropic=shape.is_anthropic, has_event_name=shape.has_event_names)
            await call.write(event, has_more=True)
        # Returning without a last body message makes the server cut the connection.

    async def _leave(self, call: Call) -> None:
        """Settle a call whose client left, with the tokens known; nobody is there to be answered."""
        call.interruption.disarm()
        try:
            await self._ask_usage_after_cancel(call)
        finally:
            self._abandon(call, "disconnected")

    async def _ask_usage_after_cancel(self, call: Call) -> None:
        """Close the engine's connection, which stops it, and ask what the request came to, where it can tell."""
        lease, response, tap, sent = call.lease, call.response, call.tap, call.sent
        if lease is None:
            if not call.attempts:
                call.usage = Usage(0, 0, 0)  # it never reached an engine
            return
        if sent is None:
            call.usage = Usage(0, 0, 0)
            return

        def close() -> None:
            if response is None:
                return
            # The answer may have come while nobody was left to have it.
            if call.usage is None and (rest := response.unread()) is not None:
                call.usage = find_usage_in_body(rest) if tap is None else find_usage(rest)
            response.abort()

        try:
            async with asyncio.timeout(USAGE_AFTER_CANCEL_S):
                last_event = tap.last_event if tap is not None else b""
                counted = await lease.engine.usage_after_cancel(
                    lease.endpoint, lease.use, call.surface, sent, last_event, close
                )
        except (StokerError, OSError, TimeoutError) as error:
            _log.info("usage.unknown: %s", error)
            return
        finally:
            close()
        # The answer's own figures, where it came after all, are the engine's last word.
        if counted is not None and call.usage is None:
            call.usage = Usage(counted[0], counted[1], counted[2])

    def _abandon(self, call: Call, outcome: Outcome) -> None:
        """Give everything back and queue the settlement, without waiting: no cancellation can lose it."""
        call.interruption.disarm()
        if not call.is_settled:
            code = "client_left" if outcome == "disconnected" else outcome
            self._end(call, outcome, code)
            forget(call.settle(self._recorder, outcome, STATUS_CLIENT_LEFT, code, self.now_s()))
            forget(call.begun)


def _outcome(error: StokerError) -> Outcome:
    """Return how the ledger names the end that an error makes."""
    if isinstance(error, EngineFailed):
        return "client_error" if error.status is not None and error.status < 500 else "engine_error"
    if isinstance(error, DeadlineExceeded):
        return "timed_out"
    if isinstance(error, BadRequest):
        return "client_error"
    return "interrupted" if error.code == "internal" else "refused"
