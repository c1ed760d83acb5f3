"""The gateway's pure decisions: names, affinity, retries, hosts, access."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.gateway.domain.access import Principal
from stoker.gateway.domain.affinity import session_key
from stoker.gateway.domain.nearest import MAX_SUGGESTIONS, nearest_names
from stoker.gateway.domain.origins import HostPolicy, is_loopback_host
from stoker.gateway.domain.retry import MAX_RETRIES, decide_retry

NAMES = ("smollm2-135m", "qwen3-8b", "qwen3-14b", "embedder")


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ("smolm2-135m", ("smollm2-135m",)),
        ("QWEN3-8B", ("qwen3-8b", "qwen3-14b")),
        ("qwen", ("qwen3-8b", "qwen3-14b")),
        ("gpt-4o", ()),
        ("", ()),
    ],
)
def test_the_nearest_names_are_those_a_person_would_mean(wanted: str, found: tuple[str, ...]) -> None:
    assert set(nearest_names(wanted, NAMES)) == set(found)


@given(st.text(max_size=300), st.lists(st.text(min_size=1, max_size=20), max_size=10))
def test_suggestions_are_few_and_known(wanted: str, known: list[str]) -> None:
    found = nearest_names(wanted, known)
    assert len(found) <= MAX_SUGGESTIONS
    assert set(found) <= set(known)


def chat(*contents: object) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": content} for content in contents]}


def test_turns_of_one_conversation_share_a_session_and_tenants_never_do() -> None:
    first = session_key("a", None, chat("system", "hello"))
    assert session_key("a", None, chat("system", "hello", "answer", "more")) == first
    assert session_key("a", None, chat("system", "hallo")) != first
    assert session_key("b", None, chat("system", "hello")) != first


@given(st.text(max_size=20), st.text(max_size=20), st.binary(max_size=20))
def test_no_name_of_the_clients_joins_two_tenants(one: str, other: str, named: bytes) -> None:
    if one != other:
        assert session_key(one, named, {}) != session_key(other, named, {})


def test_what_the_client_names_goes_before_what_it_says() -> None:
    assert session_key("a", b"s", chat("x")) == session_key("a", b"s", chat("y"))
    assert session_key("a", None, {"prompt_cache_key": "k", **chat("x")}) == session_key(
        "a", None, {"prompt_cache_key": "k", **chat("y")}
    )
    assert session_key("a", None, {"prompt": "x"}) is None
    assert session_key("a", None, chat([{"type": "text"}], None)) is not None
    assert session_key("a", None, {"messages": ["nonsense", 3]}) is not None


@pytest.mark.parametrize(
    ("status", "has_body", "num_attempts", "has_sent_bytes", "is_retry"),
    [
        pytest.param(None, False, 1, False, True, id="a broken connection"),
        pytest.param(None, False, 1, True, False, id="a broken connection after the first byte"),
        pytest.param(None, False, MAX_RETRIES + 1, False, False, id="too many attempts"),
        pytest.param(500, False, 1, False, True, id="a wordless 500"),
        pytest.param(500, True, 1, False, False, id="a 500 with words"),
        pytest.param(503, True, 1, False, True, id="a replica that loads"),
        pytest.param(400, True, 1, False, False, id="a bad request"),
        pytest.param(429, False, 1, False, False, id="too many requests"),
    ],
)
def test_retries(status: int | None, has_body: bool, num_attempts: int, has_sent_bytes: bool, is_retry: bool) -> None:
    decision = decide_retry(status=status, has_body=has_body, num_attempts=num_attempts, has_sent_bytes=has_sent_bytes)
    assert decision.is_retry is is_retry
    assert decision.reason


@pytest.mark.parametrize(
    ("bind_host", "authority", "is_allowed"),
    [
        ("127.0.0.1", "127.0.0.1:8080", True),
        ("127.0.0.1", "LocalHost", True),
        ("127.0.0.1", "localhost.", True),
        ("127.0.0.1", "[::1]:8080", True),
        ("127.0.0.1", "preview.localhost", True),
        ("127.0.0.1", "192.168.1.4", False),
        ("127.0.0.1", "localhost.evil.example", False),
        ("0.0.0.0", "192.168.1.4:8080", True),
        ("0.0.0.0", "evil.example", False),
        ("::", "[2001:db8::1]:80", True),
        ("gpu1.lab.example", "gpu1.lab.example", True),
        ("gpu1.lab.example", "gpu2.lab.example", False),
    ],
)
def test_hosts(bind_host: str, authority: str, is_allowed: bool) -> None:
    assert HostPolicy(bind_host).allows_host(authority.encode()) is is_allowed


def test_a_stranger_cannot_grow_the_memo_without_bound() -> None:
    policy = HostPolicy("127.0.0.1")
    for number in range(5000):
        policy.allows_host(b"h%d" % number)
    assert len(policy._verdicts) <= 1024
    assert policy.allows_host(b"localhost")


@pytest.mark.parametrize(
    ("origin", "is_allowed"),
    [
        (b"http://localhost:8080", True),
        (b"http://LOCALHOST:8080", True),
        (b"http://localhost:3000", False),
        (b"null", False),
        (b"file://localhost:8080", False),
        (b"http://localhost:8080.evil.example", False),
    ],
)
def test_an_origin_must_be_the_host_itself(origin: bytes, is_allowed: bool) -> None:
    assert HostPolicy("127.0.0.1").allows_origin(origin, b"localhost:8080") is is_allowed


def test_loopback_is_told_from_the_rest() -> None:
    assert all(map(is_loopback_host, ("127.0.0.1", "127.9.9.9", "::1", "localhost")))
    assert not any(map(is_loopback_host, ("0.0.0.0", "::", "10.0.0.1", "example.org", "")))


def test_both_the_keys_list_and_the_deployments_tenants_must_permit() -> None:
    open_key, narrow = Principal("k", "acme"), Principal("n", "acme", frozenset({"a"}))
    assert open_key.may_use("x", ())
    assert open_key.may_use("x", ("acme", "beta"))
    assert not open_key.may_use("x", ("beta",))
    assert narrow.may_use("a", ("acme",))
    assert not narrow.may_use("b", ())
    assert not narrow.may_use("a", ("beta",))
