"""The ledger in memory: same ports, same answers, with switches for its faults. Touches nothing."""

from __future__ import annotations

import asyncio
from asyncio import Future
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

from stoker.errors import Conflict, LedgerUnavailable
from stoker.ledger.domain.intervals import move_interval, orphan_transition
from stoker.ledger.domain.reports import Recorded, UsageQuery, UsageReport, usage_report
from stoker.ledger.records import (
    Override,
    ReplicaInterval,
    ReplicaTransition,
    RequestIntent,
    Settlement,
    StoredKey,
)


@dataclass(frozen=True, slots=True)
class OverrideChange:
    """One line of the override history; `patch` is None where the override was discarded."""

    deployment: str
    patch: str | None
    author: str
    reason: str
    at_us: int


class MemoryLedger:
    """`Recorder`, `KeyStore`, `OverrideStore`, `UsageReader` and `RecoveryStore` without a disk.

    Rows are "durable" at the loop's next turn, in the order in which they were queued.

    Attributes:
        is_failing: while true every write fails with `LedgerUnavailable` and leaves nothing behind.
        is_held: while true rows stay queued; `flush` waits for them, `release` lets them go.
        intents, settlements: what was stored, by request id.
    """

    def __init__(self) -> None:
        self.is_failing = False
        self.is_held = False
        self.intents: dict[str, RequestIntent] = {}
        self.settlements: dict[str, Settlement] = {}
        self.events: dict[tuple[str, int], ReplicaTransition] = {}
        self.intervals: dict[tuple[str, int], ReplicaInterval] = {}
        self.keys: dict[str, StoredKey] = {}
        self.overrides: dict[str, Override] = {}
        self.override_history: list[OverrideChange] = []
        self._declared: str | None = None
        self._queue: list[tuple[RequestIntent | Settlement | ReplicaTransition | None, Future[None]]] = []
        self._is_write_scheduled = False

    # -------------------------------------------------------------------------------------------- recorder

    def begin(self, intent: RequestIntent) -> Future[None]:
        return self._put(intent)

    def settle(self, settlement: Settlement) -> Future[None]:
        return self._put(settlement)

    def record(self, transition: ReplicaTransition) -> Future[None]:
        return self._put(transition)

    async def flush(self) -> None:
        await self._put(None)

    async def close(self) -> None:
        """Write what is queued, even what was held."""
        self.release()
        await self.flush()

    def release(self) -> None:
        """End `is_held` and write what was queued meanwhile."""
        self.is_held = False
        self._schedule_write()

    def _put(self, record: RequestIntent | Settlement | ReplicaTransition | None) -> Future[None]:
        future: Future[None] = asyncio.get_running_loop().create_future()
        self._queue.append((record, future))
        self._schedule_write()
        return future

    def _schedule_write(self) -> None:
        if self._queue and not self.is_held and not self._is_write_scheduled:
            self._is_write_scheduled = True
            asyncio.get_running_loop().call_soon(self._write_queued)

    def _write_queued(self) -> None:
        self._is_write_scheduled = False
        queued, self._queue = self._queue, []
        for record, future in queued:
            fault = self._write(record)
            if future.done():
                continue
            if fault is None:
                future.set_result(None)
            else:
                future.set_exception(fault)
                future.exception()

    def _write(self, record: RequestIntent | Settlement | ReplicaTransition | None) -> LedgerUnavailable | None:
        if record is None:
            return None
        if self.is_failing:
            return _failing()
        if isinstance(record, RequestIntent):
            self.intents.setdefault(record.request_id, record)
        elif isinstance(record, Settlement):
            if record.request_id not in self.intents:
                return LedgerUnavailable(f"the ledger refused a row: no intent of request {record.request_id}")
            self.settlements.setdefault(record.request_id, record)
        else:
            self._write_transition(record)
        return None

    def _write_transition(self, transition: ReplicaTransition) -> None:
        key = (transition.replica_id, transition.sequence)
        if key in self.events:
            return
        self.events[key] = transition
        current = next((i for i in self._open_intervals() if i.replica_id == transition.replica_id), None)
        for interval in move_interval(current, transition):
            if interval is not None:
                self.intervals[interval.replica_id, interval.sequence] = interval

    def _open_intervals(self) -> Iterable[ReplicaInterval]:
        return [interval for interval in self.intervals.values() if interval.ended_at_us is None]

    def _refuse_when_failing(self) -> None:
        if self.is_failing:
            raise _failing()

    # -------------------------------------------------------------------------------------------- keys

    async def add_key(self, key: StoredKey) -> None:
        self._refuse_when_failing()
        if key.key_id in self.keys or any(other.sha256 == key.sha256 for other in self.keys.values()):
            raise Conflict(f"key {key.key_id} cannot be added: it exists")
        self.keys[key.key_id] = key

    async def revoke_key(self, key_id: str, *, at_us: int) -> bool:
        self._refuse_when_failing()
        key = self.keys.get(key_id)
        if key is None or key.revoked_at_us is not None:
            return False
        self.keys[key_id] = replace(key, revoked_at_us=at_us)
        return True

    async def list_keys(self) -> Sequence[StoredKey]:
        return sorted(self.keys.values(), key=lambda key: (key.created_at_us, key.key_id))

    # -------------------------------------------------------------------------------------------- overrides

    async def put_override(self, override: Override) -> None:
        self._refuse_when_failing()
        self.overrides[override.deployment] = override
        self.override_history.append(
            OverrideChange(override.deployment, override.patch, override.author, override.reason, override.at_us)
        )

    async def discard_override(self, deployment: str, *, author: str, reason: str, at_us: int) -> None:
        self._refuse_when_failing()
        if self.overrides.pop(deployment, None) is not None:
            self.override_history.append(OverrideChange(deployment, None, author, reason, at_us))

    async def list_overrides(self) -> Sequence[Override]:
        return [self.overrides[deployment] for deployment in sorted(self.overrides)]

    async def declared(self) -> str | None:
        return self._declared

    async def set_declared(self, text: str) -> None:
        self._refuse_when_failing()
        self._declared = text

    # -------------------------------------------------------------------------------------------- reports

    async def usage(self, query: UsageQuery) -> UsageReport:
        recorded: list[Recorded] = [
            (intent, self.settlements.get(request_id)) for request_id, intent in self.intents.items()
        ]
        return usage_report(query, recorded, self.intervals.values())

    async def replica_events(self, replica_id: str | None = None) -> Sequence[ReplicaTransition]:
        return [self.events[key] for key in sorted(self.events) if replica_id in (None, key[0])]

    async def replica_intervals(self, *, only_open: bool = False) -> Sequence[ReplicaInterval]:
        intervals = [self.intervals[key] for key in sorted(self.intervals)]
        return [interval for interval in intervals if interval.ended_at_us is None or not only_open]

    # -------------------------------------------------------------------------------------------- recovery

    async def settle_interrupted(self, *, at_us: int) -> int:
        self._refuse_when_failing()
        open_intents = [intent for key, intent in self.intents.items() if key not in self.settlements]
        for intent in open_intents:
            self.settlements[intent.request_id] = Settlement(
                request_id=intent.request_id,
                settled_at_us=max(at_us, intent.arrived_at_us),
                outcome="interrupted",
                status=None,
                input_tokens=None,
                output_tokens=None,
                cached_input_tokens=None,
                has_exact_usage=False,
                queue_s=None,
                cold_start_s=None,
                gateway_ttft_s=None,
                itl_mean_s=None,
                duration_s=None,
                price_nanousd=None,
                error_code="interrupted",
                attempts=(),
            )
        return len(open_intents)

    async def last_sequences(self) -> dict[str, int]:
        held = {interval.replica_id for interval in self._open_intervals()}
        return {replica_id: max(s for r, s in self.events if r == replica_id) for replica_id in sorted(held)}

    async def close_orphan_intervals(self, except_replicas: Sequence[str], *, at_us: int) -> Sequence[str]:
        self._refuse_when_failing()
        sequences = await self.last_sequences()
        orphans = [i for i in await self.replica_intervals(only_open=True) if i.replica_id not in except_replicas]
        for orphan in orphans:
            sequence = sequences[orphan.replica_id] + 1
            self._write_transition(orphan_transition(orphan, sequence=sequence, at_us=at_us))
        return [orphan.replica_id for orphan in orphans]


def _failing() -> LedgerUnavailable:
    return LedgerUnavailable("the ledger could not be written: made to fail", mend="set is_failing to False")
