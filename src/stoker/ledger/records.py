"""The rows of the ledger as values. Pure.

Times are integer microseconds since the epoch (`_at_us`) or seconds (`_s`); money is integer nano-USD.
A request is two records: the *intent*, durable before the first response byte leaves, and the *settlement*, durable
before the last. An intent without a settlement at start-up is settled as `interrupted`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Outcome = Literal["completed", "refused", "client_error", "engine_error", "disconnected", "timed_out", "interrupted"]


@dataclass(slots=True)  # made for each request, and frozen ones take eight times as long to make
class RequestIntent:
    """What is known when a request is dispatched.

    Attributes:
        surface: `chat.completions`, `completions`, `embeddings`, …
        key_id: the ledger's id of the client key, `local` on loopback without keys.
        max_output_tokens: the client's own limit, None when it gave none.
    """

    request_id: str
    arrived_at_us: int
    key_id: str
    tenant: str
    deployment: str
    tier: str
    surface: str
    is_stream: bool
    max_output_tokens: int | None


@dataclass(slots=True)  # made for each request, and frozen ones take eight times as long to make
class Attempt:
    """One try on one replica.

    Attributes:
        number: 1 for the first.
        replica_id: None when no replica was ever granted.
        queue_s: time from asking for a slot to holding it, cold start included.
        cold_start_s: the part of `queue_s` that was spent on a replica's start.
    """

    number: int
    replica_id: str | None
    tier: str
    started_at_us: int
    ended_at_us: int
    queue_s: float
    cold_start_s: float
    outcome: Outcome
    error_code: str | None


@dataclass(slots=True)  # made for each request, and frozen ones take eight times as long to make
class Settlement:
    """What happened in the end.

    The gateway always knows `status`, `queue_s`, `cold_start_s` and `duration_s`; they are None only in rows that
    recovery wrote for a request whose server died.

    Attributes:
        input_tokens: as the engine counted them, `cached_input_tokens` included; None when unknown.
        has_exact_usage: False when tokens were counted from the stream because the engine never reported.
        gateway_ttft_s: whole request in → first output byte out; None when none left.
        itl_mean_s: mean gap between successive output chunks; None below two.
        price_nanousd: None means unpriced, which is not the same as free.
        error_code: `errors` code of the failure the client saw.
    """

    request_id: str
    settled_at_us: int
    outcome: Outcome
    status: int | None
    input_tokens: int | None
    output_tokens: int | None
    cached_input_tokens: int | None
    has_exact_usage: bool
    queue_s: float | None
    cold_start_s: float | None
    gateway_ttft_s: float | None
    itl_mean_s: float | None
    duration_s: float | None
    price_nanousd: int | None
    error_code: str | None
    attempts: tuple[Attempt, ...]


@dataclass(frozen=True, slots=True)
class ReplicaTransition:
    """One event of one replica, with the status before and after it.

    When the two differ the ledger closes the replica's open state interval and, unless the new status is final,
    opens the next; when they are the same only the event is kept.

    Attributes:
        sequence: 1, 2, 3, … for each replica; (replica_id, sequence) is unique.
        event: the lifecycle event as JSON, as `fleet.domain.lifecycle` writes and reads it.
        is_final: the new status holds no resources and nothing follows it.
        memory_bytes, cores, gpus: what the replica reserves while in the new status.
    """

    replica_id: str
    sequence: int
    at_us: int
    deployment: str
    tier: str
    event: str
    from_status: str
    to_status: str
    is_final: bool
    reason: str
    memory_bytes: int
    cores: float
    gpus: int


@dataclass(frozen=True, slots=True)
class ReplicaInterval:
    """A stretch of time that one replica spent in one status, with what it reserved meanwhile.

    Attributes:
        sequence: of the event that opened it; (replica_id, sequence) is unique.
        ended_at_us: None while the replica is still in that status; never before `started_at_us`.
    """

    replica_id: str
    sequence: int
    deployment: str
    tier: str
    status: str
    started_at_us: int
    ended_at_us: int | None
    memory_bytes: int
    cores: float
    gpus: int


@dataclass(frozen=True, slots=True)
class StoredKey:
    """A client key without its secret.

    Attributes:
        key_id: `key_…`, stable; the ledger's rows name it.
        sha256: of the whole secret, hexadecimal.
        hint: the secret's last four characters, for a person to recognise it by.
        deployments: allow-list; empty means all that the tenant may use.
    """

    key_id: str
    name: str
    tenant: str
    sha256: str
    hint: str
    deployments: tuple[str, ...]
    created_at_us: int
    revoked_at_us: int | None


@dataclass(frozen=True, slots=True)
class Override:
    """A runtime change of one deployment, laid over the file: an RFC 7386 merge patch.

    Attributes:
        patch: JSON text; `null` as a whole deletes the deployment.
        base: JSON text of the file's own declaration when the override was made (`null`: not declared there).
        author: who asked: `cli`, `admin`, `autopilot`.
    """

    deployment: str
    patch: str
    base: str
    author: str
    reason: str
    at_us: int
