"""Every example of the repository is valid, in each of its environments."""

from __future__ import annotations

from pathlib import Path

import pytest

from stoker.config.document import read_document
from stoker.config.loading import load

EXAMPLES = sorted((Path(__file__).parents[3] / "examples").glob("*.yaml"))


def test_there_are_examples() -> None:
    assert {"stoker.yaml", "embeddings.yaml", "vllm.yaml"} <= {path.name for path in EXAMPLES}


@pytest.mark.parametrize("path", EXAMPLES, ids=lambda path: path.name)
def test_an_example_loads_without_a_warning(path: Path) -> None:
    document = read_document(path.read_text())
    for environment in [None, *document.value.get("environments", {})]:
        assert load(path, environment=environment).warnings == ()


def test_the_tour_is_serverless_in_dev_and_dedicated_in_prod() -> None:
    path = next(path for path in EXAMPLES if path.name == "stoker.yaml")
    assert load(path, environment="dev").settings.deployments["acme-chat"].tier == "serverless"
    assert load(path, environment="prod").settings.deployments["acme-chat"].replicas == 2
    assert load(path, environment="dev").settings.keys == ()
