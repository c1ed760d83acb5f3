"""YAML text → plain values with lines."""

from __future__ import annotations

import pytest

from stoker.config.document import dotted, read_document


def test_values_are_plain_and_every_key_has_its_line() -> None:
    document = read_document("a: 1\nb:\n  c: [x, 2.5]\n  d: yes\ne: 0x10\nf: 2024-01-01\n")
    assert document.value == {"a": 1, "b": {"c": ["x", 2.5], "d": "yes"}, "e": 16, "f": "2024-01-01"}
    assert document.lines["b", "c", 1] == 3
    assert document.line_of(("b", "d", "nothing")) == 4
    assert document.problems == []


def test_every_duplicate_is_reported_and_the_first_one_counts() -> None:
    document = read_document("a: 1\na: 2\nb: {c: 1, c: 2}\n")
    assert document.value == {"a": 1, "b": {"c": 1}}
    assert [(problem.path, problem.line) for problem in document.problems] == [(("a",), 2), (("b", "c"), 3)]


def test_a_key_with_nothing_after_it_counts_as_not_written() -> None:
    document = read_document("a:\nb: {c: ~, d: 1}\n")
    assert document.value == {"b": {"d": 1}}
    assert document.removed == [("a",), ("b", "c")]


def test_merge_keys_and_aliases_work_and_own_keys_win() -> None:
    document = read_document("x: &x {a: 1, b: 2}\ny: {<<: *x, b: 3}\n")
    assert document.value["y"] == {"a": 1, "b": 3}


@pytest.mark.parametrize(
    ("text", "line", "word"),
    [
        pytest.param("a: [1,\nb: 2\n", 3, "begun in line 1", id="an open bracket"),
        pytest.param("a: 1\n\tb: 2\n", 2, "not valid YAML", id="a tab"),
        pytest.param("a: 1\n---\nb: 2\n", 2, "another document", id="two documents"),
        pytest.param("- a\n", 1, "keys and values", id="a list"),
        pytest.param("a: !!python/object:os.system x\n", 1, "tag", id="a tag that makes objects"),
        pytest.param("a: *x\n", 1, "alias", id="an alias of nothing"),
    ],
)
def test_what_cannot_be_read_is_a_problem_with_its_line(text: str, line: int, word: str) -> None:
    (problem, *_) = read_document(text).problems
    assert problem.line == line
    assert word in problem.text


def test_aliases_of_aliases_do_not_fill_the_memory() -> None:
    text = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n"
    for level in range(1, 9):
        text += f"a{level}: &a{level} [{', '.join([f'*a{level - 1}'] * 10)}]\n"
    (problem,) = read_document(text).problems
    assert "too large" in problem.text


def test_deep_nesting_is_a_problem_and_no_crash() -> None:
    assert read_document("[" * 1500).problems
    assert read_document("{a: " * 60 + "1" + "}" * 60).problems


def test_odd_names_are_quoted_in_paths() -> None:
    assert dotted(("deployments", "qwen2.5", "engine", "args")) == 'deployments."qwen2.5".engine.args'
    assert dotted(("keys", 0, "name")) == "keys[0].name"
