"""What is declared and what is: diff, merge, the three-way step."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config.effective import (
    DeploymentPatch,
    diff,
    forbidden_in_patch,
    merge,
    plan_apply,
    tier_patch,
)
from stoker.config.loading import load, validate
from stoker.config.patches import same


def declaring(**deployments: Any) -> dict[str, Any]:
    return {"deployments": deployments}


def changed(patch: Any, base: Any = None, name: str = "chat") -> DeploymentPatch:
    return DeploymentPatch(name, patch, base)


CHAT = {"model": "m", "max_replicas": 1, "engine": {"slots": 2}}

_keys = st.sampled_from(["model", "max_replicas", "engine", "price"])
_scalars = st.integers(0, 3) | st.booleans()
_values = st.recursive(_scalars, lambda inner: st.dictionaries(_keys, inner, max_size=3), max_leaves=6)
_deployment = st.dictionaries(_keys, _values, max_size=4)
_declared = st.dictionaries(st.sampled_from(["chat", "embed"]), _deployment, max_size=2).map(lambda d: declaring(**d))
_patch = st.recursive(
    st.none() | _scalars, lambda inner: st.dictionaries(_keys, inner, max_size=3), max_leaves=6
).filter(lambda patch: patch is None or isinstance(patch, dict))
_change = st.builds(DeploymentPatch, st.sampled_from(["chat", "embed"]), _patch, st.none())
_changes = st.lists(_change, max_size=2, unique_by=lambda change: change.deployment)


@given(_declared, _declared)
def test_two_declarations_differ_exactly_when_the_diff_is_not_empty(one: Any, other: Any) -> None:
    assert (diff(one, other) == ()) == same(one, other)


@given(_declared, _changes)
def test_an_unchanged_file_never_conflicts_and_changes_nothing(file: Any, changes: Any) -> None:
    plan = plan_apply(file, file, changes)
    assert plan.conflicts == ()
    assert not plan.is_refused
    assert plan.changes == ()
    assert same(plan.effective.get("deployments"), merge(file, changes).get("deployments"))


@given(_declared, _declared, _changes)
def test_discarding_leaves_the_file_alone(base: Any, file: Any, changes: Any) -> None:
    plan = plan_apply(base, file, changes, resolution="discard")
    assert same(plan.effective, file)
    assert plan.patches == ()
    assert not plan.is_refused


@given(_declared, _declared, _changes)
def test_keeping_is_stable_a_second_apply_finds_nothing_to_do(base: Any, file: Any, changes: Any) -> None:
    plan = plan_apply(base, file, changes, resolution="keep")
    again = plan_apply(file, file, plan.patches)
    assert not again.is_refused
    assert again.changes == ()
    assert again.patches == plan.patches


@given(_declared, _declared)
def test_without_runtime_changes_the_file_holds(base: Any, file: Any) -> None:
    plan = plan_apply(base, file, ())
    assert not plan.is_refused
    assert same(plan.effective, file)
    assert plan.changes == diff(base, file)


@given(_declared, _declared, _changes)
def test_a_conflict_names_a_place_where_file_and_runtime_differ(base: Any, file: Any, changes: Any) -> None:
    for conflict in plan_apply(base, file, changes).conflicts:
        assert not same(conflict.file, conflict.live)


def test_a_field_that_only_the_file_changed_follows_the_file() -> None:
    file = declaring(chat={**CHAT, "engine": {"slots": 8}})
    plan = plan_apply(declaring(chat=CHAT), file, [changed({"max_replicas": 4})])
    assert not plan.is_refused
    assert plan.effective["deployments"]["chat"] == {"model": "m", "max_replicas": 4, "engine": {"slots": 8}}
    assert [str(change) for change in plan.changes] == ["deployments.chat.engine.slots: 2 → 8"]


def test_a_field_that_both_changed_is_a_conflict_until_it_is_settled() -> None:
    base, file = declaring(chat=CHAT), declaring(chat={**CHAT, "max_replicas": 2})
    plan = plan_apply(base, file, [changed({"max_replicas": 4})])
    assert plan.is_refused
    (conflict,) = plan.conflicts
    assert str(conflict) == ("deployments.chat.max_replicas: applied 1, the file now says 2, a runtime change says 4")
    kept = plan_apply(base, file, [changed({"max_replicas": 4})], resolution="keep")
    assert kept.effective["deployments"]["chat"]["max_replicas"] == 4
    assert kept.patches == (changed({"max_replicas": 4}, file["deployments"]["chat"]),)


def test_a_file_that_says_the_same_as_the_runtime_change_ends_that() -> None:
    plan = plan_apply(declaring(chat=CHAT), declaring(chat={**CHAT, "max_replicas": 4}), [changed({"max_replicas": 4})])
    assert plan.conflicts == ()
    assert plan.dropped == ("chat",)
    assert plan.changes == ()


def test_neighbouring_fields_do_not_conflict() -> None:
    base, file = declaring(chat={"model": "m"}), declaring(chat={"model": "m", "engine": {"slots": 4}})
    plan = plan_apply(base, file, [changed({"engine": {"threads": 2}})])
    assert plan.conflicts == ()
    assert plan.effective["deployments"]["chat"]["engine"] == {"slots": 4, "threads": 2}


def test_a_deployment_that_the_file_takes_away_under_a_runtime_change_is_a_conflict_and_kept_whole() -> None:
    changes = [changed({"max_replicas": 4})]
    assert plan_apply(declaring(chat=CHAT), declaring(), changes).is_refused
    plan = plan_apply(declaring(chat=CHAT), declaring(), changes, resolution="keep")
    assert plan.effective["deployments"]["chat"] == {**CHAT, "max_replicas": 4}


def test_a_deployment_deleted_at_runtime_and_changed_in_the_file_is_a_conflict() -> None:
    file = declaring(chat={**CHAT, "max_replicas": 9})
    assert plan_apply(declaring(chat=CHAT), file, [changed(None)]).is_refused
    assert plan_apply(declaring(chat=CHAT), declaring(), [changed(None)]).dropped == ("chat",)


def test_a_deployment_made_at_runtime_outlives_applies() -> None:
    plan = plan_apply(declaring(), declaring(embed={"model": "m"}), [changed({"model": "m"})])
    assert not plan.is_refused
    assert set(plan.effective["deployments"]) == {"chat", "embed"}


def test_before_the_first_apply_a_change_is_held_against_its_own_base() -> None:
    changes = [changed({"max_replicas": 4}, CHAT)]
    assert plan_apply(None, declaring(chat={**CHAT, "max_replicas": 2}), changes).is_refused
    assert not plan_apply(None, declaring(chat=CHAT), changes).is_refused


def test_keys_are_compared_by_their_names() -> None:
    one = {"keys": [{"name": "a", "tenant": "x"}, {"name": "b"}]}
    other = {"keys": [{"name": "b"}, {"name": "a", "tenant": "y"}]}
    assert [str(change) for change in diff(one, other)] == ['keys.a.tenant: "x" → "y"']


def test_moving_a_deployment_drops_what_only_the_other_tier_knows() -> None:
    declared = load(None).declared
    name = next(iter(declared["deployments"]))
    moved = merge(declared, [DeploymentPatch(name, tier_patch("dedicated", replicas=2))])
    assert validate(moved).deployments[name].replicas == 2
    back = merge(moved, [DeploymentPatch(name, tier_patch("serverless", max_replicas=3))])
    assert validate(back).deployments[name].max_replicas == 3


@pytest.mark.parametrize(
    ("patch", "paths"),
    [
        pytest.param({"engine": {"command": ["sh"], "url": None}}, {"engine.command", "engine.url"}, id="programs"),
        pytest.param(
            {"engine": {"binary": "/x", "env": {"A": "b"}}}, {"engine.binary", "engine.env"}, id="environment"
        ),
        pytest.param(
            {"engine": {"args": {"api-key-file": "file:/etc/shadow"}}}, {"engine.args.api-key-file"}, id="files"
        ),
        pytest.param({"x": [{"secret": "y"}]}, {"x[0].secret"}, id="secrets"),
        pytest.param({"max_replicas": 3, "engine": {"slots": 2, "args": {"a": 1}}}, set(), id="ordinary fields"),
        pytest.param(None, set(), id="a deletion"),
    ],
)
def test_programs_and_secrets_come_from_the_file_on_disk_only(patch: Any, paths: set[str]) -> None:
    assert {problem.sentence(None).split(": ")[0] for problem in forbidden_in_patch(patch)} == paths
