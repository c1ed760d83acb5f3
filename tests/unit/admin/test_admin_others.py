"""Keys, usage, models, logs, status and the interface's own description."""

from __future__ import annotations

import asyncio
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from stoker.admin.log_tail import LogTail
from stoker.clock import Clock
from stoker.errors import StokerError
from stoker.ledger.records import RequestIntent, Settlement
from stoker.models.store import StoredModel
from stoker.testing.operator import Operator

# ------------------------------------------------------------------------------------------------ keys


async def test_a_secret_is_shown_once_and_kept_as_a_hash(admin: httpx.AsyncClient, operator: Operator) -> None:
    created = await admin.post("/admin/keys", json={"name": "alice", "tenant": "acme", "deployments": ["chat"]})
    assert created.status_code == 201
    assert created.headers["cache-control"] == "no-store"
    secret, key_id = created.json()["secret"], created.json()["key_id"]
    assert operator.ledger.keys[key_id].sha256 == sha256(secret.encode()).hexdigest()
    assert operator.keyring.num_refreshes == 1

    listed = await admin.get("/admin/keys")
    assert secret not in listed.text
    assert [(key["key_id"], key["origin"]) for key in listed.json()["keys"]] == [
        ("config:owner", "file"), (key_id, "store"), ("local", "loopback"),
    ]  # fmt: skip
    assert listed.json()["keys"][1]["hint"] == f"…{secret[-4:]}"

    assert (await admin.delete(f"/admin/keys/{key_id}")).status_code == 204
    assert operator.keyring.num_refreshes == 2
    assert (await admin.delete(f"/admin/keys/{key_id}")).status_code == 404
    assert (await admin.get("/admin/keys")).json()["keys"][1]["revoked_at"] is not None


async def test_keys_that_cannot_be(admin: httpx.AsyncClient) -> None:
    assert (await admin.post("/admin/keys", json={"name": "a", "deployments": ["nope"]})).status_code == 400
    assert (await admin.post("/admin/keys", json={"name": "\x1b[31m"})).status_code == 400
    assert (await admin.post("/admin/keys", json={})).status_code == 400
    from_file = await admin.delete("/admin/keys/config:owner")
    assert from_file.status_code == 400
    assert "stoker apply" in from_file.json()["error"]["mend"]


# ------------------------------------------------------------------------------------------------ usage and models


async def test_usage_says_what_was_unpriced_and_groups_as_asked(admin: httpx.AsyncClient, operator: Operator) -> None:
    now_us = int(operator.clock.now().timestamp() * 1e6)
    for number, price in enumerate((1_500_000, None)):
        operator.ledger.begin(
            RequestIntent(f"r{number}", now_us - 1000, "k", "acme", "chat", "serverless", "completions", False, None)
        )
        operator.ledger.settle(
            Settlement(f"r{number}", now_us - 500, "completed", 200, 10, 5, 0, True, 0.1, 0.0, 0.2, None, 0.5, price,
                       None, ())
        )  # fmt: skip
    await operator.ledger.flush()
    report = (await admin.get("/admin/usage", params={"since": "1h", "by": "tenant,deployment"})).json()
    (row,) = report["rows"]
    assert (row["tenant"], row["deployment"], row["num_requests"]) == ("acme", "chat", 2)
    assert (row["price_usd"], row["num_unpriced"], row["gateway_ttft_s"]["p50"]) == ("0.0015", 1, 0.2)
    earlier = (await admin.get("/admin/usage", params={"since": "2020-01-01", "until": "2020-01-02"})).json()
    assert earlier["rows"] == []
    assert earlier["since"].startswith("2020-01-01T00:00:00")


@pytest.mark.parametrize("query", ["by=colour", "by=tier,tier", "since=yesterday", "until=x"])
async def test_a_wrong_question_about_usage_is_said_so(admin: httpx.AsyncClient, query: str) -> None:
    assert (await admin.get(f"/admin/usage?{query}")).status_code == 400


async def test_models_tell_which_are_here(admin: httpx.AsyncClient, operator: Operator) -> None:
    before = {each["name"]: each for each in (await admin.get("/admin/models")).json()["models"]}
    assert before["smollm2-135m"]["state"] == "absent"
    source = before["smollm2-135m"]["source"]
    operator.shelf.models = [StoredModel("smollm2-135m", source, "0" * 64, 98, Path("/x"), "verified", False)]
    after = {each["name"]: each for each in (await admin.get("/admin/models")).json()["models"]}
    assert (after["smollm2-135m"]["state"], after["smollm2-135m"]["size_bytes"]) == ("verified", 98)
    assert after["smollm2-135m"]["profile"]["engine"]["slots"] == 4


async def test_status_and_replicas(admin: httpx.AsyncClient) -> None:
    await admin.post("/admin/deployments/chat/scale", json={"replicas": 1})
    status = (await admin.get("/admin/status")).json()
    assert status["config_path"] == "/etc/stoker.yaml"
    assert {each["name"]: each["status"] for each in status["deployments"]} == {"chat": "ready", "own": "cold"}
    (replica,) = (await admin.get("/admin/replicas")).json()["replicas"]
    assert (replica["deployment"], replica["status"], replica["memory_bytes"]) == ("chat", "ready", 400 * 2**20)


# ------------------------------------------------------------------------------------------------ logs


async def test_logs_of_a_replica_and_of_a_deployment(admin: httpx.AsyncClient, operator: Operator) -> None:
    (operator.log_dir / "chat-00000001.log").write_text("".join(f"line {n}\n" for n in range(10)) + "unfinished")
    (operator.log_dir / "chat-2-00000002.log").write_text("another deployment's\n")
    (operator.log_dir / "keeper.log").write_text("the keeper's\n")
    one = await admin.get("/admin/logs/chat-00000001?lines=2")
    assert one.text == "line 8\nline 9\nunfinished\n"
    assert one.headers["x-content-type-options"] == "nosniff"
    both = await admin.get("/admin/logs/chat?lines=1")
    assert both.text == "chat-00000001 │ line 9\nchat-00000001 │ unfinished\n"
    assert (await admin.get("/admin/logs/own")).text == ""


@pytest.mark.parametrize(
    "name",
    ["..%2F..%2Fetc%2Fpasswd", "..", "%2e%2e%2fsecret", "..%2fsecret", "nope", "%00", "chat-00000001.log", "*"],
)
async def test_a_log_is_looked_for_by_name_and_never_by_path(
    admin: httpx.AsyncClient, operator: Operator, name: str
) -> None:
    (operator.log_dir.parent / "secret.log").write_text("hush")
    (operator.log_dir / "chat-00000001.log").write_text("x\n")
    answer = await admin.get(f"/admin/logs/{name}")
    assert answer.status_code == 404
    assert "hush" not in answer.text


class Steps:
    """A clock whose every sleep does the next thing; it ends by cancelling the reader."""

    def __init__(self, *steps: object) -> None:
        self._steps = list(steps)

    async def sleep(self, delay_s: float) -> None:
        if not self._steps:
            raise asyncio.CancelledError
        self._steps.pop(0)()  # type: ignore[operator]


async def test_following_survives_growth_rotation_and_a_second_replica(tmp_path: Path) -> None:
    log = tmp_path / "chat-00000001.log"
    log.write_text("one\n")

    def grow() -> None:
        with log.open("a") as file:
            file.write("two\nthr")

    def grow_again() -> None:
        with log.open("a") as file:
            file.write("ee\n")

    def rotate() -> None:
        log.rename(tmp_path / "chat-00000001.log.1")
        log.write_text("four\n")

    def start_another() -> None:
        (tmp_path / "chat-00000002.log").write_text("five\n")

    clock: Clock = Steps(grow, grow_again, rotate, start_another)  # type: ignore[assignment]
    tail = LogTail(tmp_path, "chat", lines=10, labels=False, clock=clock)
    seen: list[str] = []

    async def follow() -> None:
        async for line in tail.read(follow=True):
            seen.append(line.decode().strip())

    with pytest.raises(asyncio.CancelledError):
        await follow()
    assert seen == ["one", "two", "three", "four", "five"]


async def test_following_ends_with_the_server(admin: httpx.AsyncClient, operator: Operator) -> None:
    (operator.log_dir / "chat-00000001.log").write_text("one\n")
    operator.fleet.is_draining = True
    assert (await admin.get("/admin/logs/chat-00000001?follow")).text == "one\n"


# ------------------------------------------------------------------------------------------------ the interface itself


async def test_the_description_names_every_route_that_answers(admin: httpx.AsyncClient) -> None:
    document = (await admin.get("/admin/openapi.json")).json()
    assert document["openapi"].startswith("3.1")
    described = {(method, path) for path, methods in document["paths"].items() for method in methods}
    assert {
        ("get", "/admin/deployments"), ("post", "/admin/deployments"), ("patch", "/admin/deployments/{name}"),
        ("delete", "/admin/deployments/{name}"), ("post", "/admin/deployments/{name}/move"), ("post", "/admin/apply"),
        ("get", "/admin/logs/{name}"), ("get", "/admin/usage"), ("delete", "/admin/keys/{key_id}"),
    } <= described  # fmt: skip
    for method, path in described:
        answer = await admin.request(method, path.replace("{name}", "nope").replace("{key_id}", "nope"))
        assert answer.status_code != 405
        assert answer.json()["error"]["code"] != "unknown_route" if answer.status_code >= 400 else True
    patch = document["paths"]["/admin/deployments/{name}"]["patch"]
    assert {"in": "header", "name": "If-Match"}.items() <= patch["parameters"][1].items()
    assert patch["parameters"][1]["required"] is True
    references = {part.split('"')[0] for part in (await admin.get("/admin/openapi.json")).text.split('"$ref":"#/')[1:]}
    for reference in references:
        place = document
        for key in reference.split("/"):
            place = place[key]


async def test_unknown_routes_and_methods_are_said_in_the_envelope(admin: httpx.AsyncClient) -> None:
    assert (await admin.get("/admin/nope")).json()["error"]["code"] == "unknown_route"
    answer = await admin.put("/admin/deployments", json={})
    assert (answer.status_code, answer.json()["error"]["code"]) == (405, "method_not_allowed")


async def test_what_nobody_foresaw_is_internal_and_tells_nothing(admin: httpx.AsyncClient, operator: Operator) -> None:
    operator.fleet.refusal = RuntimeError("secret detail")  # type: ignore[assignment]
    answer = await admin.post("/admin/deployments/chat/scale", json={"replicas": 1})
    assert answer.status_code == 500
    assert "secret" not in answer.text
    operator.fleet.refusal = StokerError("secret detail")
    answer = await admin.post("/admin/deployments/chat/scale", json={"replicas": 1})
    assert (answer.status_code, "secret" in answer.text) == (500, False)


def test_an_empty_token_is_refused(operator: Operator) -> None:
    operator.token = ""
    with pytest.raises(ValueError, match="token"):
        operator.app()
