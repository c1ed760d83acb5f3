"""The laws of merge patches."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config.patches import make_patch, merge_patch, same

_keys = st.sampled_from(["a", "b", "c", "d"])
_scalars = st.booleans() | st.integers(-2, 2) | st.sampled_from(["x", "y"])
values = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_keys, inner, max_size=3), max_leaves=10
)
mappings = st.dictionaries(_keys, values, max_size=4)
patches = st.recursive(
    st.none() | _scalars | st.lists(_scalars, max_size=2),
    lambda inner: st.dictionaries(_keys, inner, max_size=3),
    max_leaves=10,
)


@pytest.mark.parametrize(
    ("target", "patch", "outcome"),
    [
        ({"a": "b"}, {"a": "c"}, {"a": "c"}),
        ({"a": "b"}, {"b": "c"}, {"a": "b", "b": "c"}),
        ({"a": "b"}, {"a": None}, {}),
        ({"a": "b", "b": "c"}, {"a": None}, {"b": "c"}),
        ({"a": ["b"]}, {"a": "c"}, {"a": "c"}),
        ({"a": "c"}, {"a": ["b"]}, {"a": ["b"]}),
        ({"a": {"b": "c"}}, {"a": {"b": "d", "c": None}}, {"a": {"b": "d"}}),
        ({"a": [{"b": "c"}]}, {"a": [1]}, {"a": [1]}),
        (["a", "b"], ["c", "d"], ["c", "d"]),
        ({"a": "b"}, ["c"], ["c"]),
        ({"a": "foo"}, None, None),
        ({"a": "foo"}, "bar", "bar"),
        ({}, {"a": {"bb": {"ccc": None}}}, {"a": {"bb": {}}}),
    ],
)
def test_the_examples_of_rfc_7386(target: Any, patch: Any, outcome: Any) -> None:
    assert merge_patch(target, patch) == outcome


@given(values, values | st.none())
def test_a_made_patch_leads_to_its_target(source: Any, target: Any) -> None:
    assert same(merge_patch(source, make_patch(source, target)), target)


@given(mappings)
def test_nothing_to_change_is_the_empty_patch(value: Any) -> None:
    assert make_patch(value, value) == {}


@given(mappings, patches)
def test_a_second_time_changes_nothing_more(target: Any, patch: Any) -> None:
    once = merge_patch(target, patch)
    assert same(merge_patch(once, patch), once)


@given(mappings, patches)
def test_arguments_are_left_alone(target: Any, patch: Any) -> None:
    before = deepcopy((target, patch))
    merge_patch(target, patch)
    make_patch(target, target)
    assert (target, patch) == before
