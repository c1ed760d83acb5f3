"""What is declared and what is: every change is checked whole, stored, acted upon, and survives a restart."""

from __future__ import annotations

import asyncio
import json

import pytest

from stoker.errors import (
    BadRequest,
    ConfigInvalid,
    Conflict,
    Forbidden,
    InsufficientMemory,
    LedgerUnavailable,
    NotFound,
    StokerError,
)
from stoker.fleet.declaration import ApplyRefused, EtagMismatch
from stoker.testing.operator import TESTER, Operator

FILE = """
deployments:
  chat: {model: smollm2-135m, min_replicas: 0, max_replicas: 4, keep_alive: 5m}
  vectors: {model: smollm2-135m, engine: {pooling: mean}}
"""


@pytest.fixture
async def operator() -> Operator:
    return await Operator(FILE).start()


async def restarted(operator: Operator) -> Operator:
    """A second server on the same store and the same file."""
    return await Operator(operator.text, ledger=operator.ledger).start()


# ------------------------------------------------------------------------------------------------ changes


async def test_a_created_deployment_is_stored_before_the_fleet_hears_of_it(operator: Operator) -> None:
    view = await operator.deployments.create("extra", {"model": "smollm2-135m"}, author=TESTER)
    assert json.loads(operator.fleet.overrides_seen[0]["extra"]) == {"model": "smollm2-135m"}
    assert operator.fleet.calls[-1].keys() == {"chat", "vectors", "extra"}
    assert not view.is_declared
    assert view.override is not None
    assert (view.override.author, view.override.reason) == ("tester", "because")
    assert view.override.at_us == int(operator.clock.now().timestamp() * 1e6)


async def test_a_restart_changes_nothing(operator: Operator) -> None:
    await operator.deployments.create("extra", {"model": "smollm2-135m"}, author=TESTER)
    await operator.deployments.patch("chat", {"max_replicas": 7}, author=TESTER)
    await operator.deployments.delete("vectors", author=TESTER)
    again = await restarted(operator)
    assert [(v.name, v.etag) for v in again.deployments.list()] == [
        (v.name, v.etag) for v in operator.deployments.list()
    ]
    assert again.deployments.get("chat").settings.max_replicas == 7


async def test_an_edited_file_waits_for_apply_across_a_restart(operator: Operator) -> None:
    operator.text = FILE.replace("max_replicas: 4", "max_replicas: 9")
    again = Operator(operator.text, ledger=operator.ledger)
    waiting = await again.deployments.restore()
    assert again.deployments.get("chat").settings.max_replicas == 4
    assert [str(change) for change in waiting] == ["deployments.chat.max_replicas: 4 → 9"]
    await again.deployments.apply(None, author=TESTER)
    assert again.deployments.get("chat").settings.max_replicas == 9


async def test_another_file_on_the_same_state_is_taken_at_once_under_the_runtime_changes(operator: Operator) -> None:
    await operator.deployments.patch("chat", {"max_replicas": 7}, author=TESTER)
    other = Operator(
        "deployments: {chat: {model: smollm2-135m, min_replicas: 1}}", path="/other.yaml", ledger=operator.ledger
    )
    await other.start()
    settings = other.deployments.get("chat").settings
    assert (settings.min_replicas, settings.max_replicas) == (1, 7)
    assert [view.name for view in other.deployments.list()] == ["chat"]


async def test_a_patch_that_says_what_the_file_says_leaves_no_override(operator: Operator) -> None:
    await operator.deployments.patch("chat", {"max_replicas": 7}, author=TESTER)
    view = await operator.deployments.patch("chat", {"max_replicas": 4}, author=TESTER)
    assert view.override is None
    assert operator.ledger.overrides == {}


async def test_of_two_changes_on_one_etag_the_second_is_refused(operator: Operator) -> None:
    etag = operator.deployments.get("chat").etag
    results = await asyncio.gather(
        operator.deployments.patch("chat", {"max_replicas": 5}, author=TESTER, if_match=etag),
        operator.deployments.patch("chat", {"max_replicas": 6}, author=TESTER, if_match=etag),
        return_exceptions=True,
    )
    assert [type(result).__name__ for result in results] == ["DeploymentView", "EtagMismatch"]
    assert operator.deployments.get("chat").settings.max_replicas == 5


async def test_a_deployment_that_was_deleted_and_made_again_keeps_nothing_of_the_file(operator: Operator) -> None:
    await operator.deployments.delete("chat", author=TESTER)
    with pytest.raises(NotFound):
        operator.deployments.get("chat")
    view = await operator.deployments.create("chat", {"model": "smollm2-135m"}, author=TESTER)
    assert view.settings.max_replicas == 1
    assert (await restarted(operator)).deployments.get("chat").etag == view.etag


@pytest.mark.parametrize(
    "patch",
    [
        {"engine": {"command": ["sh", "-c", "id"]}},
        {"engine": {"binary": "/bin/sh"}},
        {"engine": {"env": {"LD_PRELOAD": "/tmp/x.so"}}},
        {"engine": {"url": "http://169.254.169.254/"}},
        {"engine": {"args": {"x": "exec:id"}}},
        {"engine": {"args": {"x": "file:/etc/shadow"}}},
    ],
    ids=["command", "binary", "environment", "address", "exec reference", "file reference"],
)
async def test_programs_and_references_never_come_at_run_time(operator: Operator, patch: dict[str, object]) -> None:
    with pytest.raises(Forbidden) as refused:
        await operator.deployments.patch("chat", patch, author=TESTER)
    assert "stoker apply" in (refused.value.mend or "")
    with pytest.raises(Forbidden):
        await operator.deployments.create("extra", {"model": "smollm2-135m", **patch}, author=TESTER)
    assert operator.ledger.overrides == {}
    assert operator.fleet.overrides_seen == []


@pytest.mark.parametrize(
    ("patch", "words"),
    [
        ({"max_replicas": 0}, "max_replicas"),
        ({"min_replicas": 9}, "min_replicas"),
        ({"colour": "red"}, "colour"),
        ({"model": "no-such"}, "no-such"),
        ({"replicas": 2}, "dedicated"),
    ],
    ids=["out of range", "above the maximum", "unknown key", "unknown model", "other tier's field"],
)
async def test_an_invalid_change_is_refused_whole(operator: Operator, patch: dict[str, object], words: str) -> None:
    before = operator.deployments.get("chat").etag
    with pytest.raises(ConfigInvalid) as refused:
        await operator.deployments.patch("chat", {"keep_alive": 9, **patch}, author=TESTER)
    assert words in str(refused.value)
    assert operator.deployments.get("chat").etag == before
    assert operator.ledger.overrides == {}


async def test_a_change_that_the_fleet_refuses_is_taken_back_in_the_store(operator: Operator) -> None:
    await operator.deployments.patch("chat", {"max_replicas": 7}, author=TESTER)
    before = dict(operator.ledger.overrides)
    operator.fleet.refusal = InsufficientMemory("600 MiB + 800 MiB > 1 GiB")
    with pytest.raises(InsufficientMemory):
        await operator.deployments.move("chat", "dedicated", author=TESTER)
    assert operator.ledger.overrides == before
    assert operator.deployments.get("chat").settings.tier == "serverless"
    operator.fleet.refusal = InsufficientMemory("no")
    with pytest.raises(InsufficientMemory):
        await operator.deployments.create("extra", {"model": "smollm2-135m"}, author=TESTER)
    assert operator.ledger.overrides == before


async def test_what_cannot_be_stored_is_not_acted_upon(operator: Operator) -> None:
    operator.ledger.is_failing = True
    with pytest.raises(LedgerUnavailable):
        await operator.deployments.patch("chat", {"max_replicas": 7}, author=TESTER)
    assert operator.fleet.calls == []
    assert operator.deployments.get("chat").settings.max_replicas == 4


async def test_a_caller_who_goes_away_leaves_a_whole_change(operator: Operator) -> None:
    change = asyncio.create_task(operator.deployments.patch("chat", {"max_replicas": 7}, author=TESTER))
    await asyncio.sleep(0)
    change.cancel()
    with pytest.raises(asyncio.CancelledError):
        await change
    await operator.deployments.patch("chat", {"min_replicas": 1}, author=TESTER)
    settings = operator.deployments.get("chat").settings
    assert (settings.min_replicas, settings.max_replicas) == (1, 7)


async def test_a_taken_name_and_an_absent_one_are_said_so(operator: Operator) -> None:
    with pytest.raises(Conflict):
        await operator.deployments.create("chat", {"model": "smollm2-135m"}, author=TESTER)
    with pytest.raises(NotFound, match="vectors"):
        await operator.deployments.delete("chatt", author=TESTER)
    with pytest.raises(EtagMismatch):
        await operator.deployments.delete("chat", author=TESTER, if_match="0" * 16)


# ------------------------------------------------------------------------------------------------ move and scale


async def test_a_move_there_and_back_leaves_what_the_file_says(operator: Operator) -> None:
    before = operator.deployments.get("chat").etag
    moved = await operator.deployments.move("chat", "dedicated", author=TESTER, replicas=2)
    assert (moved.settings.tier, moved.settings.replicas) == ("dedicated", 2)
    back = await operator.deployments.move("chat", "serverless", author=TESTER)
    assert back.etag == before
    assert back.override is None


async def test_a_move_to_the_same_tier_changes_only_what_is_given(operator: Operator) -> None:
    view = await operator.deployments.move("chat", "serverless", author=TESTER, max_replicas=5)
    assert (view.settings.max_replicas, view.settings.keep_alive) == (5, 300.0)


@pytest.mark.parametrize(
    ("wanted", "found"),
    [
        ({"replicas": 2}, (2, 4)),
        ({"replicas": 6}, (6, 6)),
        ({"replicas": 0}, (0, 4)),
        ({"min_replicas": 1, "max_replicas": 2}, (1, 2)),
        ({"max_replicas": 8}, (0, 8)),
    ],
    ids=["warm ones", "warm ones above the maximum", "none warm", "both ends", "the maximum alone"],
)
async def test_scaling_serverless(operator: Operator, wanted: dict[str, int], found: tuple[int, int]) -> None:
    settings = (await operator.deployments.scale("chat", author=TESTER, **wanted)).settings
    assert (settings.min_replicas, settings.max_replicas) == found


async def test_scaling_dedicated_takes_replicas_only(operator: Operator) -> None:
    await operator.deployments.move("chat", "dedicated", author=TESTER)
    assert (await operator.deployments.scale("chat", author=TESTER, replicas=3)).settings.replicas == 3
    with pytest.raises(BadRequest):
        await operator.deployments.scale("chat", author=TESTER, max_replicas=3)
    with pytest.raises(BadRequest):
        await operator.deployments.scale("chat", author=TESTER)


# ------------------------------------------------------------------------------------------------ apply


async def test_apply_follows_the_file_and_keeps_runtime_changes_elsewhere(operator: Operator) -> None:
    await operator.deployments.patch("chat", {"min_replicas": 1}, author=TESTER)
    operator.text = FILE.replace("max_replicas: 4", "max_replicas: 9")
    await operator.deployments.apply(None, author=TESTER)
    settings = operator.deployments.get("chat").settings
    assert (settings.min_replicas, settings.max_replicas) == (1, 9)
    assert (await restarted(operator)).deployments.get("chat").settings == settings


async def conflicting() -> Operator:
    operator = await Operator(FILE).start()
    await operator.deployments.patch("chat", {"max_replicas": 7}, author=TESTER)
    operator.text = FILE.replace("max_replicas: 4", "max_replicas: 9")
    return operator


async def test_apply_refuses_a_conflict_and_names_all_three_values() -> None:
    operator = await conflicting()
    with pytest.raises(ApplyRefused) as refused:
        await operator.deployments.apply(None, author=TESTER)
    (conflict,) = refused.value.conflicts
    assert (conflict.path, conflict.base, conflict.file, conflict.live) == (
        ("deployments", "chat", "max_replicas"), 4, 9, 7,
    )  # fmt: skip
    assert operator.deployments.get("chat").settings.max_replicas == 7
    assert len(operator.fleet.calls) == 1


@pytest.mark.parametrize(("mode", "replicas", "num_overrides"), [("keep", 7, 1), ("discard", 9, 0)])
async def test_apply_settles_a_conflict_as_told(mode: str, replicas: int, num_overrides: int) -> None:
    operator = await conflicting()
    await operator.deployments.apply(mode, author=TESTER)  # type: ignore[arg-type]
    assert operator.deployments.get("chat").settings.max_replicas == replicas
    assert len(operator.ledger.overrides) == num_overrides
    again = await restarted(operator)
    assert again.deployments.get("chat").settings.max_replicas == replicas
    assert (await again.deployments.apply(None, author=TESTER)).plan.changes == ()


async def test_a_dry_run_changes_nothing() -> None:
    operator = await conflicting()
    applied = await operator.deployments.apply(None, author=TESTER, is_dry_run=True)
    assert applied.plan.is_refused
    assert operator.deployments.get("chat").settings.max_replicas == 7


@pytest.mark.parametrize("culprit", ["the fleet", "the keys"])
async def test_an_apply_that_fails_leaves_everything_as_it_was(culprit: str) -> None:
    operator = await conflicting()
    overrides, declared = dict(operator.ledger.overrides), await operator.ledger.declared()
    refusal: StokerError = InsufficientMemory("no")
    if culprit == "the fleet":
        operator.fleet.refusal = refusal
    else:
        operator.refused_keys = refusal
    with pytest.raises(InsufficientMemory):
        await operator.deployments.apply("discard", author=TESTER)
    assert operator.ledger.overrides == overrides
    assert await operator.ledger.declared() == declared
    assert operator.deployments.get("chat").settings.max_replicas == 7
    assert operator.applied[-1].settings.deployments["chat"].max_replicas == 4


async def test_a_file_that_is_broken_now_is_refused_and_nothing_changes(operator: Operator) -> None:
    operator.text = "deployments: {chat: {model: smollm2-135m, max_replicas: many}}"
    with pytest.raises(ConfigInvalid, match=r"stoker\.yaml:1"):
        await operator.deployments.apply(None, author=TESTER)
    assert operator.deployments.get("chat").settings.max_replicas == 4


async def test_a_model_whose_source_changed_is_fetched_from_there_for_those_who_use_it() -> None:
    old = 'models: {m: {source: "https://a.example/m.gguf"}}\ndeployments: {chat: {model: m}}'
    operator = await Operator(old).start()
    operator.text = old.replace("a.example", "b.example")
    await operator.deployments.apply(None, author=TESTER)
    assert operator.fetched == [("m", "https://b.example/m.gguf")]
    assert operator.fleet.models == {"m": None}


async def test_what_a_running_server_does_not_take_up_is_said_so(operator: Operator) -> None:
    operator.text = FILE + "server: {port: 9000}\n"
    applied = await operator.deployments.apply(None, author=TESTER)
    assert [change.path for change in applied.at_next_start] == [("server",)]


async def test_drift_is_between_the_file_now_and_what_runs(operator: Operator) -> None:
    await operator.deployments.patch("chat", {"max_replicas": 7}, author=TESTER)
    operator.text = FILE.replace("max_replicas: 4", "max_replicas: 9")
    drift = await operator.deployments.drift()
    assert [str(change) for change in drift.changes] == ["deployments.chat.max_replicas: 9 → 7"]
    assert [str(change) for change in drift.unapplied] == ["deployments.chat.max_replicas: 4 → 9"]
    assert [override.deployment for override in drift.overrides] == ["chat"]


async def test_a_key_may_outlive_the_deployment_that_it_names() -> None:
    text = FILE + f'keys: [{{name: a, sha256: "{"0" * 64}", deployments: [chat]}}]\n'
    operator = await Operator(text).start()
    await operator.deployments.delete("chat", author=TESTER)
    assert [view.name for view in (await restarted(operator)).deployments.list()] == ["vectors"]
