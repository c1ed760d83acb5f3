"""Bad input and strangers: each gets one clear error in the envelope, and nothing reaches the engine."""

from __future__ import annotations

import asyncio
from hashlib import sha256

import pytest

from stoker.errors import DeadlineExceeded, Draining, EngineFailed, InsufficientMemory, NoCapacity, StokerError
from stoker.gateway.auth import ConfiguredKey
from stoker.ledger.records import StoredKey
from stoker.testing.gateway import deployment_facts

USER = [{"role": "user", "content": "hi"}]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        pytest.param(b"{", "not valid JSON", id="cut JSON"),
        pytest.param(b"", "not valid JSON", id="no body"),
        pytest.param(b"\xff\xfe", "not valid JSON", id="not UTF-8"),
        pytest.param(b"[" * 5000, "not valid JSON", id="nested beyond the parser"),
        pytest.param(b"[]", "must be a JSON object", id="a list"),
        pytest.param(b'{"messages": []}', "model is missing", id="no model"),
        pytest.param(b'{"model": 3}', "model must be a string, not a number", id="a number for a model"),
        pytest.param(b'{"model": "chat", "stream": "yes"}', "stream must be true or false", id="a word for a flag"),
        pytest.param(b'{"model": "chat", "messages": "hi"}', "messages must be a list", id="a string for messages"),
        pytest.param(b'{"model": "chat", "messages": []}', "messages must be a list", id="no messages"),
        pytest.param(b'{"model": "chat", "messages": [1]}', "messages[0] must be an object", id="a number in messages"),
        pytest.param(b'{"model": "chat", "messages": [{}]}', "messages[0].role", id="a message without role"),
        pytest.param(
            b'{"model": "chat", "messages": [{"role": "user", "content": 5}]}', "messages[0].content", id="bad content"
        ),
        pytest.param(
            b'{"model": "chat", "messages": [{"role": "u"}], "max_tokens": "9"}', "max_tokens must be", id="bad limit"
        ),
        pytest.param(b'{"model": "chat", "stream_options": 1}', "stream_options must be", id="bad stream options"),
    ],
)
async def test_malformed_requests_are_named(open_house, body: bytes, said: str):
    async with open_house() as house:
        answer = await house.client.send("POST", "/v1/chat/completions", body, Content_Type="application/json")
        assert answer.status == 400
        assert said in answer.error["message"]
        assert answer.error["source"] == "stoker"
        assert answer.headers["x-stoker-error-source"] == "stoker"
        assert answer.headers["x-stoker-request-id"].startswith("req_")
        assert not house.upstream.requests
        assert not house.ledger.intents


async def test_an_unknown_model_is_answered_with_the_nearest_names_this_key_may_see(open_house):
    async with open_house() as house:
        answer = await house.client.chat("chta")
        assert (answer.status, answer.error["code"], answer.error["param"]) == (404, "model_not_found", "model")
        assert "did you mean chat?" in answer.error["message"]


async def test_another_tenants_deployment_is_forbidden_and_the_attempt_recorded(open_house):
    async with open_house() as house:
        answer = await house.client.chat("chat-large")
        assert (answer.status, answer.error["code"]) == (403, "forbidden")
        [row] = await house.settled()
        assert (row.outcome, row.status, row.price_nanousd) == ("refused", 403, None)
        assert not house.leases.asks


async def test_a_surface_that_is_not_offered_is_named_with_those_that_are(open_house):
    async with open_house() as house:
        answer = await house.client.post("/v1/embeddings", {"model": "chat", "input": "x"})
        assert (answer.status, answer.error["code"]) == (404, "unsupported_surface")
        assert "chat.completions, completions" in answer.error["message"]


@pytest.mark.parametrize(
    "part",
    [
        {"type": "image_url", "image_url": {"url": "https://example.org/cat.png"}},
        {"type": "image_url", "image_url": {"url": "file:///etc/passwd"}},
        {"type": "image_url", "image_url": "http://169.254.169.254/"},
        {"type": "input_audio", "input_audio": {"data": "http://example.org/a.wav"}},
        {"type": "image", "source": {"type": "url", "url": "https://example.org/cat.png"}},
    ],
)
async def test_remote_media_are_refused(open_house, part: dict[str, object]):
    async with open_house() as house:
        answer = await house.client.chat(messages=[{"role": "user", "content": [part]}])
        assert answer.status == 400
        assert "remote media are not fetched" in answer.error["message"]
        assert not house.upstream.requests
        [row] = await house.settled()
        assert row.outcome == "client_error"


async def test_inline_media_and_a_tool_calls_own_urls_pass(open_house):
    parts = [
        {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}},
        {"type": "tool_use", "input": {"url": "https://example.org"}},
    ]
    async with open_house() as house:
        assert (await house.client.chat(messages=[{"role": "user", "content": parts}])).status == 200


async def test_text_that_cannot_fit_is_refused_before_a_slot_is_taken(open_house):
    async with open_house(facts=(deployment_facts("chat", context_tokens=100),)) as house:
        answer = await house.client.chat(messages=[{"role": "user", "content": "x" * 3300}])
        assert (answer.status, answer.error["code"]) == (400, "context_length_exceeded")
        assert "3300 bytes" in answer.error["message"]
        assert not house.leases.asks
        assert (await house.client.chat(messages=[{"role": "user", "content": "x" * 3100}])).status == 200


async def test_an_announced_body_above_the_limit_is_refused_unread(open_house):
    async with open_house(max_body=1000) as house, house.client.connect() as (reader, writer):
        writer.write(house.client.request("POST", "/v1/completions", Content_Length="5000000"))
        answer = await house.client.read(reader)
        assert (answer.status, answer.error["code"]) == (413, "body_too_large")
        assert answer.headers["connection"] == "close"


async def test_a_chunked_body_is_cut_at_the_limit(open_house):
    async with open_house(max_body=1000) as house, house.client.connect() as (reader, writer):
        writer.write(house.client.request("POST", "/v1/completions", Transfer_Encoding="chunked"))
        for _ in range(50):
            writer.write(b"64\r\n" + b"x" * 100 + b"\r\n")
        answer = await house.client.read(reader)
        assert answer.status == 413


async def test_a_stranger_is_answered_before_the_upload_and_can_read_the_answer(open_house):
    async with open_house() as house, house.client.connect() as (reader, writer):
        big = 8 * 2**20
        writer.write(house.client.request("POST", "/v1/completions", Host="evil.example", Content_Length=str(big)))
        writer.write(b"x" * big)
        answer = await house.client.read(reader)
        assert (answer.status, answer.headers["connection"]) == (421, "close")


async def test_expect_100_continue_is_answered_before_the_body(open_house):
    async with open_house() as house, house.client.connect() as (reader, writer):
        head, _, body = house.client.chat_request().partition(b"\r\n\r\n")
        writer.write(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert (await house.client.read(reader)).status == 100
        writer.write(body)
        assert (await house.client.read(reader)).status == 200


async def test_a_body_too_large_gets_no_100_continue(open_house):
    async with open_house(max_body=10) as house, house.client.connect() as (reader, writer):
        head, _, _body = house.client.chat_request().partition(b"\r\n\r\n")
        writer.write(head + b"\r\nExpect: 100-continue\r\n\r\n")
        assert (await house.client.read(reader)).status == 413


@pytest.mark.parametrize(
    ("headers", "status", "code"),
    [
        ({"Host": "evil.example"}, 421, "foreign_host"),
        ({"Host": "evil.example:8080"}, 421, "foreign_host"),
        ({"Host": "127.0.0.1.evil.example"}, 421, "foreign_host"),
        ({"Host": "10.1.2.3"}, 421, "foreign_host"),
        ({"Host": ""}, 400, "bad_request"),
        ({"Origin": "https://evil.example"}, 403, "foreign_origin"),
        ({"Origin": "null"}, 403, "foreign_origin"),
        ({"Origin": "http://localhost:3000"}, 403, "foreign_origin"),
    ],
)
@pytest.mark.parametrize("path", ["/v1/models", "/health", "/metrics", "/admin/deployments", "/nowhere"])
async def test_foreign_hosts_and_origins_are_refused_everywhere(open_house, path, headers, status, code):
    async with open_house() as house:
        answer = await house.client.get(path, **headers)
        assert (answer.status, answer.error["code"]) == (status, code)
        assert not any(name.startswith("access-control") for name in answer.headers)
        assert not house.admin_paths


async def test_names_of_this_machine_configured_names_and_the_own_origin_pass(open_house):
    async with open_house(allowed_hosts=["stoker.example", "*.lab.example"]) as house:
        for host in ("localhost", "LOCALHOST:1", "[::1]:80", "a.localhost", "stoker.example:443", "x.lab.example"):
            assert (await house.client.get("/health", Host=host)).status == 200, host
        own = f"http://127.0.0.1:{house.client.port}"
        assert (await house.client.get("/health", Origin=own)).status == 200
        assert (await house.client.get("/health", Host="lab.example")).status == 421


def key(secret: str, name: str, tenant: str, *deployments: str) -> ConfiguredKey:
    return ConfiguredKey(name, tenant, sha256(secret.encode()).hexdigest(), deployments)


async def test_where_keys_are_configured_each_sees_its_own_and_strangers_nothing(open_house):
    keys = (key("sk-a", "a", "acme"), key("sk-b", "b", "beta", "chat"))
    async with open_house(keys=keys) as house:
        unknown = await house.client.chat(headers={"Authorization": "Bearer sk-x"})
        assert (unknown.status, unknown.error["code"]) == (401, "invalid_api_key")
        assert unknown.headers["www-authenticate"] == "Bearer"
        assert (await house.client.chat()).status == 401
        assert (await house.client.get("/v1/models")).status == 401
        assert (await house.client.get("/metrics")).status == 401
        assert (await house.client.get("/health")).status == 200
        assert (await house.client.chat("chat-large", headers={"Authorization": "bearer sk-a"})).status == 200
        assert (await house.client.chat("chat-large", headers={"Authorization": "Bearer sk-b"})).status == 403
        assert (await house.client.chat("chat", headers={"X_Api_Key": "sk-b"})).status == 200
        await house.settled(3)
        assert {(i.key_id, i.tenant) for i in house.ledger.intents.values()} == {
            ("config:a", "acme"), ("config:b", "beta")
        }  # fmt: skip


async def test_on_loopback_a_known_key_keeps_its_identity_and_a_revoked_one_is_refused(open_house):
    def stored(key_id: str, secret: str, revoked_at_us: int | None) -> StoredKey:
        return StoredKey(key_id, key_id, "acme", sha256(secret.encode()).hexdigest(), secret[-4:], (), 1, revoked_at_us)

    async with open_house() as house:
        await house.ledger.add_key(stored("key_live", "sk-live", None))
        await house.ledger.add_key(stored("key_dead", "sk-dead", 5))
        await house.keyring.refresh()
        assert (await house.client.chat("chat-large", headers={"Authorization": "Bearer sk-live"})).status == 200
        assert (await house.client.chat(headers={"Authorization": "Bearer sk-dead"})).status == 401
        assert (await house.client.chat(headers={"Authorization": "Bearer sk-other"})).status == 200
        await house.settled(2)
        assert {i.key_id for i in house.ledger.intents.values()} == {"key_live", "local"}


@pytest.mark.parametrize(
    ("refusal", "status", "retry_after", "outcome"),
    [
        (NoCapacity("4 of 4 GiB are in use", retry_after_s=2.2), 503, "3", "refused"),
        (InsufficientMemory("8 GiB are needed, 4 GiB there"), 503, None, "refused"),
        (DeadlineExceeded("waited 1 s"), 504, None, "timed_out"),
        (Draining("going away"), 503, "1", "refused"),
        (EngineFailed("exit code 1: out of coal"), 502, None, "engine_error"),
    ],
)
async def test_the_fleets_refusals_reach_the_client_with_a_truthful_retry_after(
    open_house, refusal: StokerError, status: int, retry_after: str | None, outcome: str
):
    async with open_house() as house:
        house.leases.refusal = refusal
        answer = await house.client.chat()
        assert (answer.status, answer.error["code"]) == (status, refusal.code)
        assert refusal.message in answer.error["message"]
        assert answer.headers.get("retry-after") == retry_after
        [row] = await house.settled()
        assert (row.outcome, row.error_code, row.attempts[0].replica_id) == (outcome, refusal.code, None)


async def test_wrong_methods_and_unknown_routes_say_so(open_house):
    async with open_house() as house:
        assert (await house.client.get("/v1/chat/completions")).status == 405
        assert (await house.client.post("/v1/models", {})).status == 405
        assert (await house.client.get("/v2")).error["code"] == "unknown_route"


async def test_headers_beyond_the_limit_are_refused(open_house):
    async with open_house(max_header=4096) as house:
        async with house.client.connect() as (reader, writer):
            writer.write(b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Big: " + b"x" * 10_000)
            assert (await house.client.read(reader)).status == 431
        at_once = await house.client.get("/health", **{"X-Big": "x" * 10_000})
        assert (at_once.status, at_once.error["code"]) == (431, "headers_too_large")
        many = {f"X{n}": "1" for n in range(200)}
        assert (await house.client.get("/health", **many)).status == 431


@pytest.mark.parametrize(
    "junk",
    [
        b"\x16\x03\x01\x02\x00\x01\x00\x01",
        b"GET\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n",
        b"POST / HTTP/1.1\r\nContent-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    ],
)
async def test_bytes_that_are_not_http_get_a_400(open_house, junk: bytes):
    async with open_house() as house, house.client.connect() as (reader, writer):
        writer.write(junk)
        answer = await house.client.read(reader)
        assert (answer.status, answer.error["code"]) == (400, "bad_request")


async def test_a_deadline_of_the_clients_own_ends_a_wait(open_house):
    async with open_house() as house:
        house.leases.is_closed = True
        answer = await house.client.chat(headers={"X_Stoker_Deadline_Ms": "80"})
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        [row] = await house.settled()
        assert row.outcome == "timed_out"
        assert house.leases.num_waiting == 0
        assert (await house.client.chat(headers={"X_Stoker_Deadline_Ms": "soon"})).status == 400


async def test_connections_beyond_the_limit_get_503_and_the_others_go_on(open_house):
    async with open_house(max_connections=2) as house:
        async with house.client.connect() as (first, write_first), house.client.connect():
            await house.until(lambda: house.server.num_connections == 2)
            refused = await house.client.get("/health")
            assert (refused.status, refused.error["code"]) == (503, "too_many_connections")
            assert refused.headers["retry-after"] == "1"
            write_first.write(house.client.chat_request())
            assert (await house.client.read(first)).status == 200
        await house.until(lambda: house.server.num_connections == 0)
        assert (await house.client.get("/health")).status == 200


async def test_a_flood_of_requests_sent_ahead_is_refused(open_house):
    async with open_house() as house:
        house.leases.is_closed = True
        async with house.client.connect() as (reader, writer), asyncio.timeout(10):
            writer.write(house.client.chat_request() * 50)
            assert (await house.client.read(reader)).status == 400
        await house.until(lambda: house.server.num_connections == 0)
        await house.settled(len(house.ledger.intents))
