"""The table of errors, the envelope, the headers of a refusal."""

from __future__ import annotations

import json

import pytest

import stoker.errors
import stoker.gateway.errors
from stoker.errors import ConfigInvalid, EngineFailed, NoCapacity, StokerError
from stoker.fleet.ports import Endpoint, SlotLease, SlotUse
from stoker.gateway.errors import STATUS_BY_CODE, envelope, error_event, source_of, status_of
from stoker.gateway.headers import answer_block, block_headers, error_headers
from stoker.testing.gateway import PlainEngine


def all_kinds(kind: type[StokerError] = StokerError) -> list[type[StokerError]]:
    return [kind, *(sub for child in kind.__subclasses__() for sub in all_kinds(child))]


def test_every_code_has_a_status_and_no_status_is_left_over() -> None:
    ours = [kind for kind in all_kinds() if kind.__module__ in {"stoker.errors", "stoker.gateway.errors"}]
    assert {kind.code for kind in ours} == set(STATUS_BY_CODE)


def test_an_unknown_code_is_internal_and_keeps_its_details_to_itself() -> None:
    error = StokerError("KeyError: /secret/path")
    assert status_of(error) == 500
    assert "secret" not in envelope(error).decode()


def test_the_envelope_is_openais_with_the_speaker() -> None:
    error = json.loads(envelope(NoCapacity("full", mend="come back", param="model")))["error"]
    assert error == {
        "message": "full (come back)",
        "type": "overloaded_error",
        "param": "model",
        "code": "capacity_exhausted",
        "source": "stoker",
    }
    assert json.loads(envelope(NoCapacity("full"), is_anthropic=True))["type"] == "error"
    assert ConfigInvalid(("a",)).code in STATUS_BY_CODE


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"m","code":7}}', "m"),
        (b'{"object":"error","message":"m"}', "m"),
        (b'{"detail":"m"}', "m"),
        (b'{"error":"m"}', "m"),
        (b"m", "m"),
        (b"[1]", "[1]"),
        (b'{"error":', '{"error":'),
    ],
)
def test_an_engines_words_survive_every_shape(body: bytes, message: str) -> None:
    error = EngineFailed("x", status=418, body=body)
    assert status_of(error) == 418
    assert source_of(error) == "engine"
    found = json.loads(envelope(error))["error"]
    assert (found["message"], found["source"]) == (message, "engine")


def test_a_stream_that_breaks_ends_in_an_event_and_never_in_done() -> None:
    event = error_event(EngineFailed("gone"), has_event_name=True)
    assert event.startswith(b"event: error\ndata: {")
    assert event.endswith(b"}\n\n")


@pytest.mark.parametrize(
    ("error", "name", "value"),
    [
        (NoCapacity("x", retry_after_s=1.01), b"retry-after", b"2"),
        (NoCapacity("x", retry_after_s=0.0), b"retry-after", b"1"),
        (stoker.errors.LedgerUnavailable("x"), b"retry-after", b"1"),
        (stoker.errors.InsufficientMemory("x"), b"x-should-retry", b"false"),
        (stoker.errors.Unauthenticated("x"), b"www-authenticate", b"Bearer"),
        (stoker.errors.BodyTooLarge("x"), b"connection", b"close"),
        (EngineFailed("x"), b"x-stoker-error-source", b"engine"),
    ],
)
def test_a_refusals_headers_tell_a_client_what_to_do(error: StokerError, name: bytes, value: bytes) -> None:
    assert dict(error_headers(error, "req_1", 5))[name] == value


def test_an_answers_headers_are_the_same_for_every_server() -> None:
    lease = SlotLease(
        1, "d", "dedicated", "d-1", Endpoint(host="h", port=1), PlainEngine(), SlotUse(0, True, "t"), 0.0, 0.0
    )
    block = answer_block("req_1", lease, content_type=b"a/b; c=d", queue_s=0.0125, cold_start_s=1.5, price_nanousd=5)
    assert dict(block_headers(block, 7)) == {
        b"content-type": b"a/b; c=d",
        b"content-length": b"7",
        b"x-stoker-request-id": b"req_1",
        b"x-stoker-served-by": b"d-1",
        b"x-stoker-tier": b"dedicated",
        b"x-stoker-cold-start-ms": b"1500",
        b"x-stoker-queue-ms": b"12",
        b"x-stoker-cost-usd": b"0.000000005",
    }
