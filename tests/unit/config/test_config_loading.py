"""stoker.yaml → settings, with every problem at once."""

from __future__ import annotations

from contextlib import suppress
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config.builtin import BUILTIN_MODELS, DEFAULT_MODEL
from stoker.config.loading import MAX_FILE_BYTES, Loaded, load, load_text, validate
from stoker.errors import ConfigInvalid

FILE = Path("stoker.yaml")
MODEL = "models: {m: {source: file:///m.gguf}}\n"


def problems(text: str, environment: str | None = None) -> tuple[str, ...]:
    with pytest.raises(ConfigInvalid) as caught:
        load_text(text, path=FILE, environment=environment)
    return caught.value.problems


def loaded(text: str, environment: str | None = None) -> Loaded:
    return load_text(text, path=FILE, environment=environment)


def test_without_a_file_the_embedded_model_is_served_from_zero() -> None:
    default = load(None)
    deployment = default.settings.deployments[DEFAULT_MODEL]
    assert (deployment.tier, deployment.min_replicas, deployment.max_replicas) == ("serverless", 0, 1)
    assert default.settings.models[DEFAULT_MODEL].sha256 == BUILTIN_MODELS[DEFAULT_MODEL]["sha256"]
    assert validate(default.declared) == default.settings


def test_durations_and_sizes_are_read_in_all_spellings() -> None:
    settings = loaded(
        "server: {header_timeout: 500ms, body_timeout: 2m, max_body: 1MiB, drain_timeout: 7}\n"
        "node: {memory: 8GB, memory_reserve: 0}\n" + MODEL + "deployments: {d: {model: m, keep_alive: 1h}}\n"
    ).settings
    assert settings.server.header_timeout == 0.5
    assert settings.server.body_timeout == 120.0
    assert settings.server.max_body == 2**20
    assert settings.server.drain_timeout == 7.0
    assert settings.node.memory == 8 * 10**9
    assert settings.deployments["d"].keep_alive == 3600.0


def test_a_built_in_model_needs_no_entry_and_is_filled_in() -> None:
    result = loaded(f"deployments: {{d: {{model: {DEFAULT_MODEL}}}}}\n")
    assert "models" not in result.declared
    assert result.settings.models[DEFAULT_MODEL].source.startswith("package://")


def test_all_problems_are_reported_together_in_the_order_of_their_lines() -> None:
    text = (
        "server:\n  port: 99999\n  hst: x\n"
        + MODEL
        + "deployments:\n  chat:\n    model: mm\n    min_replica: 1\n    keep_alive: soon\n"
        "keys:\n  - {name: k, secret: sk-clear-text}\n"
    )
    found = problems(text)
    assert [sentence.split(": ")[0] for sentence in found] == [f"stoker.yaml:{line}" for line in (2, 3, 7, 8, 9, 11)]
    assert found[1].startswith("stoker.yaml:3: server.hst: this key is not known; did you mean `host`? valid keys:")
    assert "did you mean `min_replicas`?" in found[3]
    assert "sk-clear-text" not in "".join(found)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        pytest.param("server: {port: high}", "whole number of at least 0 and at most 65535", id="a word for a number"),
        pytest.param("server: {port: true}", "whole number", id="true for a number"),
        pytest.param("server: {max_body: 3 bananas}", "a size such as", id="a size of bananas"),
        pytest.param("server: {body_timeout: .inf}", "a duration such as", id="an endless duration"),
        pytest.param("server: 7", "valid keys: host, port", id="a number for keys"),
        pytest.param("node: {cores: 0}", "`auto` or a whole number of at least 1", id="no cores"),
        pytest.param("models: {m: {}}", "models.m.source: this is missing; it must be text", id="no source"),
        pytest.param("models: {m: {source: ftp://x/y}}", "ftp:// is not a kind of model source", id="ftp"),
        pytest.param("models: {m: {source: http://x/y}}", "use https://", id="plain http"),
        pytest.param(
            "models: {m: {source: file:///x, sha256: 12}}", "64 hexadecimal digits", id="a number for a checksum"
        ),
        pytest.param(MODEL + "deployments: {d: {model: m, tier: dedicatd}}", "`serverless` or `dedicated`", id="tier"),
        pytest.param(
            MODEL + "deployments: {d: {model: mm}}", "there is no model mm; did you mean `m`?", id="no such model"
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, slots: 2}}",
            "did you mean `engine.slots`?",
            id="a key one level too high",
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, replicas: 2}}",
            "for dedicated deployments",
            id="serverless with replicas",
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, tenants: [a]}}",
            "for dedicated deployments",
            id="serverless with tenants",
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, tier: dedicated, max_replicas: 2}}",
            "for serverless deployments",
            id="dedicated with a range",
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, tier: dedicated, keep_alive: 5m}}",
            "for serverless deployments",
            id="dedicated with a keep-alive",
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, min_replicas: 3, max_replicas: 2}}",
            "3 is above max_replicas 2",
            id="range",
        ),
        pytest.param(
            MODEL + "deployments: {a b: {model: m}}", 'deployments."a b": must be a name', id="a name with a blank"
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, engine: {kind: openai}}}", "needs `command`", id="openai, no url"
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, engine: {kind: vllm, binary: x}}}",
            "for `kind: llama.cpp`",
            id="binary",
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, engine: {url: 'http://x'}}}", "use `binary`", id="url, llama.cpp"
        ),
        pytest.param(
            MODEL + "deployments: {d: {model: m, engine: {kind: openai, url: 'ftp://x'}}}",
            "begin with http",
            id="url kind",
        ),
        pytest.param(
            "models: {m: {source: hf://o/r}}\ndeployments: {d: {model: m}}",
            "a whole repository",
            id="repository, llama.cpp",
        ),
        pytest.param("keys: [{name: k}]", "needs `secret` or `sha256`", id="a key with nothing"),
        pytest.param(f"keys: [{{name: k, secret: 'env:K', sha256: '{'0' * 64}'}}]", "gives both", id="a key with both"),
        pytest.param("keys: [{name: k, secret: 'env:'}]", "must be env:NAME", id="a reference to nothing"),
        pytest.param(
            "keys: [{name: k, secret: 'env:K', deployments: [x]}]",
            "there is no deployment x",
            id="allow-list of nothing",
        ),
        pytest.param(
            "keys: [{name: k, secret: 'env:K'}, {name: k, secret: 'env:L'}]", "2 keys are named k", id="namesakes"
        ),
        pytest.param("environments: {prod: {environments: {}}}", "cannot hold environments", id="nested environments"),
        pytest.param("environments: [prod]", "names with an overlay each", id="a list of environments"),
    ],
)
def test_each_problem_says_what_would_be_valid(text: str, expected: str) -> None:
    assert any(expected in sentence for sentence in problems(text + "\n")), problems(text + "\n")


def test_a_server_with_weights_of_its_own_may_call_its_model_anything() -> None:
    engine = "engine: {kind: openai, url: 'http://127.0.0.1:1'}"
    assert loaded(f"deployments: {{d: {{model: theirs, {engine}}}}}\n").settings.deployments["d"].model == "theirs"
    assert problems("deployments: {d: {model: theirs, engine: {kind: openai, command: [serve, '{model}']}}}\n")


def test_tenants_that_no_key_has_are_a_warning_only() -> None:
    text = MODEL + "deployments: {d: {model: m, tier: dedicated, tenants: [acme]}}\n"
    assert loaded(text).warnings == ()
    (warning,) = loaded(text + "keys: [{name: k, tenant: acm, secret: 'env:K'}]\n").warnings
    assert "did you mean `acm`?" in warning


ENVIRONMENTS = (
    MODEL
    + """deployments:
  chat:
    model: m
    max_replicas: 3
    max_queue: 5
environments:
  dev:
  prod:
    deployments:
      chat:
        tier: dedicated
        replicas: 2
        max_queue:
"""
)


def test_an_overlay_is_laid_over_the_file_and_can_take_keys_away() -> None:
    prod = loaded(ENVIRONMENTS, "prod")
    assert prod.declared["deployments"]["chat"] == {"model": "m", "tier": "dedicated", "replicas": 2}
    assert prod.settings.deployments["chat"].max_queue == 64
    assert loaded(ENVIRONMENTS, "dev").declared == loaded(ENVIRONMENTS).declared
    assert "environments" not in prod.declared


def test_an_unknown_environment_names_those_that_exist() -> None:
    (sentence,) = problems(ENVIRONMENTS, "prd")
    assert "did you mean `prod`?" in sentence
    assert "(environments: prod, dev)" in sentence


def test_a_problem_of_an_overlay_carries_its_own_line_and_shows_before_it_is_used() -> None:
    text = ENVIRONMENTS.replace("replicas: 2", "replicas: none")
    (sentence,) = problems(text, "dev")
    assert sentence.startswith("stoker.yaml:13: deployments.chat.replicas: must be a whole number")
    assert sentence.endswith("(environment prod)")


def test_a_file_that_needs_its_environment_is_valid_with_it() -> None:
    text = MODEL + "deployments: {chat: {max_queue: 1}}\nenvironments: {prod: {deployments: {chat: {model: m}}}}\n"
    assert loaded(text, "prod").settings.deployments["chat"].model == "m"
    assert "deployments.chat.model: this is missing" in problems(text)[0]


def test_an_environment_without_a_file_is_refused() -> None:
    with pytest.raises(ConfigInvalid, match="no configuration file"):
        load(None, environment="prod")


def test_files_that_cannot_be_read_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigInvalid, match="No such file"):
        load(tmp_path / "absent.yaml")
    latin = tmp_path / "latin.yaml"
    latin.write_bytes(b"a: 1\nb: \xe9\n")
    with pytest.raises(ConfigInvalid, match=r"latin\.yaml:2: this is not UTF-8"):
        load(latin)
    huge = tmp_path / "huge.yaml"
    huge.write_bytes(b"#" * (MAX_FILE_BYTES + 1))
    with pytest.raises(ConfigInvalid, match="larger than"):
        load(huge)


def test_an_empty_file_is_an_empty_configuration(tmp_path: Path) -> None:
    path = tmp_path / "stoker.yaml"
    path.write_text("# nothing yet\n")
    assert load(path).declared == {}


@given(st.text(max_size=200))
def test_no_text_makes_it_crash(text: str) -> None:
    with suppress(ConfigInvalid):
        load_text(text, path=FILE)


_words = st.sampled_from(
    [
        "models",
        "deployments",
        "keys",
        "server",
        "m",
        "model",
        "engine",
        "source",
        "secret",
        "tier",
        "tenants",
        "name",
        "url",
    ]
)
_junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_words, inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(_words, _junk, max_size=4))
def test_no_declaration_makes_the_checks_crash(declared: dict[str, object]) -> None:
    with suppress(ConfigInvalid):
        validate(declared)
