"""Deployments over HTTP: ETags, media types, refusals and the three-way apply."""

from __future__ import annotations

import asyncio

import httpx
import pytest

from stoker.errors import InsufficientMemory, ModelUnavailable
from stoker.models.fetching import ProgressReport
from stoker.testing.operator import Operator
from tests.unit.admin.conftest import FILE

CHAT = "/admin/deployments/chat"


async def etag(admin: httpx.AsyncClient) -> str:
    return (await admin.get(CHAT)).headers["etag"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Authorization": "Bearer other"},
        {"Authorization": "Bearer "},
        {"Authorization": "token"},
        {"Authorization": "Basic token"},
        {"x-api-key": "token"},
    ],
    ids=["none", "another", "an empty one", "without a scheme", "another scheme", "another header"],
)
@pytest.mark.parametrize("path", ["/admin/status", "/admin/openapi.json", "/admin/no-such", CHAT])
async def test_nothing_is_told_without_the_token(
    stranger: httpx.AsyncClient, path: str, headers: dict[str, str]
) -> None:
    answer = await stranger.get(path, headers=headers)
    assert answer.status_code == 401
    error = answer.json()["error"]
    assert error["code"] == "invalid_api_key"
    assert "admin-token" in error["mend"]


async def test_two_tokens_are_none(stranger: httpx.AsyncClient) -> None:
    headers = [("Authorization", "Bearer token"), ("Authorization", "Bearer other")]
    assert (await stranger.get("/admin/status", headers=headers)).status_code == 401


async def test_a_deployment_is_read_with_its_etag_and_without_its_environment(admin: httpx.AsyncClient) -> None:
    answer = await admin.get("/admin/deployments/own")
    body = answer.json()
    assert answer.headers["etag"] == f'"{body["etag"]}"'
    assert "hush" not in answer.text
    assert list(body["settings"]["engine"]["env"]) == ["TOKEN"]
    assert body["status"]["status"] == "cold"
    assert body["is_declared"] is True
    listed = (await admin.get("/admin/deployments")).json()["deployments"]
    assert [each["name"] for each in listed] == ["chat", "own"]
    assert listed[1] == body


@pytest.mark.parametrize("nested", [True, False], ids=["under settings", "at the top level"])
async def test_create_change_and_delete(admin: httpx.AsyncClient, operator: Operator, nested: bool) -> None:
    settings = {"model": "smollm2-135m", "max_replicas": 2}
    body = {"name": "extra", "reason": "a trial", **({"settings": settings} if nested else settings)}
    created = await admin.post("/admin/deployments", json=body)
    assert (created.status_code, created.headers["location"]) == (201, "/admin/deployments/extra")
    assert created.json()["override"]["reason"] == "a trial"
    assert created.json()["override"]["author"] == "admin"

    path, change = "/admin/deployments/extra", {"max_replicas": 3}
    changed = await admin.patch(
        path, json={"settings": change} if nested else change, headers={"If-Match": created.headers["etag"]}
    )
    assert changed.status_code == 200
    assert changed.json()["settings"]["max_replicas"] == 3
    assert changed.headers["etag"] != created.headers["etag"]

    assert (await admin.delete(path, headers={"If-Match": created.headers["etag"]})).status_code == 412
    assert (await admin.delete(path, headers={"If-Match": changed.headers["etag"]})).status_code == 204
    assert (await admin.get(path)).status_code == 404
    assert "extra" not in operator.fleet.calls[-1]


async def test_of_two_racing_patches_one_is_412(admin: httpx.AsyncClient) -> None:
    headers = {"If-Match": await etag(admin)}
    answers = await asyncio.gather(
        *(admin.patch(CHAT, json={"max_replicas": n}, headers=headers) for n in (5, 6)),
    )
    assert sorted(answer.status_code for answer in answers) == [200, 412]
    (refused,) = [answer for answer in answers if answer.status_code == 412]
    assert refused.json()["error"]["code"] == "etag_mismatch"


@pytest.mark.parametrize("method", ["PATCH", "DELETE"])
async def test_a_change_without_an_etag_is_428_and_a_star_is_any(admin: httpx.AsyncClient, method: str) -> None:
    body = {"max_replicas": 5} if method == "PATCH" else None
    answer = await admin.request(method, CHAT, json=body)
    assert answer.status_code == 428
    assert "If-Match" in answer.json()["error"]["mend"]
    assert (await admin.request(method, CHAT, json=body, headers={"If-Match": "*"})).status_code in {200, 204}


@pytest.mark.parametrize("path", ["/admin/deployments", f"{CHAT}/move", f"{CHAT}/scale", "/admin/keys", "/admin/apply"])
@pytest.mark.parametrize("declared", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data", None])
async def test_a_form_changes_nothing(
    admin: httpx.AsyncClient, operator: Operator, path: str, declared: str | None
) -> None:
    headers = {} if declared is None else {"Content-Type": declared}
    answer = await admin.post(path, content=b'{"name": "x", "tier": "dedicated"}', headers=headers)
    assert answer.status_code == 415
    assert operator.fleet.overrides_seen == []
    assert operator.ledger.keys == {}


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        (b"{", 400, "not valid JSON"),
        (b"[]", 400, "JSON object"),
        (b'{"model": "smollm2-135m"}', 400, "name"),
        (b'{"name": 7, "model": "smollm2-135m"}', 400, "name"),
        (b'{"name": "a b", "model": "smollm2-135m"}', 400, "name"),
        (b'{"name": "x", "model": "nope"}', 400, "nope"),
        (b'{"name": "x", "settings": [], "reason": ""}', 400, "object"),
        (b'{"name": "x", "settings": {}, "model": "smollm2-135m"}', 400, "beside"),
        (b'{"name": "x", "model": "smollm2-135m", "reason": 7}', 400, "reason"),
        (b'{"name": "x", "model": "smollm2-135m", "engine": {"command": ["id"]}}', 403, "on disk"),
        (b'{"name": "chat", "model": "smollm2-135m"}', 409, "already"),
        (b'{"x": "' + b"a" * 300_000 + b'"}', 413, "larger"),
    ],
    ids=lambda value: value[:50].decode() if isinstance(value, bytes) else "",
)
async def test_what_is_wrong_with_a_body_is_said(
    admin: httpx.AsyncClient, operator: Operator, body: bytes, status: int, words: str
) -> None:
    answer = await admin.post("/admin/deployments", content=body, headers={"Content-Type": "application/json"})
    assert answer.status_code == status, answer.text
    assert words in answer.json()["error"]["message"]
    assert operator.fleet.overrides_seen == []


@pytest.mark.parametrize(
    ("refusal", "code"),
    [
        (InsufficientMemory("weights 94 MiB + 800 MiB > 512 MiB"), "insufficient_memory"),
        (ModelUnavailable("it is cut off", mend="pull it"), "model_unavailable"),
    ],
)
async def test_the_fleets_refusal_arrives_with_its_words(
    admin: httpx.AsyncClient, operator: Operator, refusal: InsufficientMemory, code: str
) -> None:
    operator.fleet.refusal = refusal
    answer = await admin.post(f"{CHAT}/move", json={"tier": "dedicated"})
    assert answer.status_code == 503
    assert answer.json()["error"] == {
        "message": refusal.message, "type": answer.json()["error"]["type"], "param": None, "code": code,
        "mend": refusal.mend, "source": "stoker",
    }  # fmt: skip


async def test_move_and_scale(admin: httpx.AsyncClient) -> None:
    moved = await admin.post(f"{CHAT}/move", json={"tier": "dedicated", "replicas": 2, "tenants": ["acme"]})
    settings = moved.json()["settings"]
    assert (settings["tier"], settings["replicas"], settings["tenants"]) == ("dedicated", 2, ["acme"])
    scaled = await admin.post(f"{CHAT}/scale", json={"replicas": 1, "reason": "less"})
    assert scaled.json()["settings"]["replicas"] == 1
    stale = await admin.post(f"{CHAT}/scale", json={"replicas": 3}, headers={"If-Match": moved.headers["etag"]})
    assert stale.status_code == 412
    for body in ({"tier": "spot"}, {"tier": "dedicated", "colour": 1}, {}):
        answer = await admin.post(f"{CHAT}/move", json=body)
        assert answer.status_code == 400
        assert "tier" in answer.json()["error"]["mend"]


async def test_progress_tells_the_download_the_start_and_the_end(admin: httpx.AsyncClient, operator: Operator) -> None:
    async def progress() -> dict[str, object]:
        found: dict[str, object] = (await admin.get(f"{CHAT}/progress")).json()
        return {key: found[key] for key in ("stage", "is_live", "is_failed")}

    operator.fetches.note(ProgressReport("smollm2-135m", "fetching", 5, 10))  # type: ignore[arg-type]
    assert await progress() == {"stage": "fetching", "is_live": False, "is_failed": False}
    operator.fetches.clear("smollm2-135m")
    assert await progress() == {"stage": "cold", "is_live": True, "is_failed": False}
    operator.fleet.status["chat"] = "failed"
    assert await progress() == {"stage": "failed", "is_live": False, "is_failed": True}


async def test_apply_over_http(admin: httpx.AsyncClient, operator: Operator) -> None:
    await admin.patch(CHAT, json={"max_replicas": 7}, headers={"If-Match": "*"})
    operator.text = FILE.replace("max_replicas: 4", "max_replicas: 9")
    drift = (await admin.get("/admin/config/diff")).json()
    assert drift["changes"] == [{"path": ["deployments", "chat", "max_replicas"], "before": 9, "after": 7}]
    assert drift["path"] == "/etc/stoker.yaml"

    refused = await admin.post("/admin/apply", json={})
    assert refused.status_code == 409
    path = ["deployments", "chat", "max_replicas"]
    assert refused.json()["error"]["conflicts"] == [{"path": path, "base": 4, "file": 9, "live": 7}]
    dry = (await admin.post("/admin/apply", json={"dry_run": True})).json()
    assert (dry["is_refused"], dry["is_dry_run"]) == (True, True)

    applied = (await admin.post("/admin/apply", json={"mode": "discard"})).json()
    assert applied["dropped"] == ["chat"]
    assert (await admin.get(CHAT)).json()["settings"]["max_replicas"] == 9

    operator.text = "deployments: {chat: {modle: x}}"
    broken = await admin.post("/admin/apply", json={})
    assert broken.status_code == 400
    assert any("modle" in problem for problem in broken.json()["error"]["problems"])
