"""`/admin` over a fleet that does as it is told."""

from __future__ import annotations

from collections.abc import AsyncIterator

import httpx
import pytest

from stoker.testing.operator import Operator

FILE = """
keys: [{name: owner, sha256: "0000000000000000000000000000000000000000000000000000000000000000"}]
deployments:
  chat: {model: smollm2-135m, max_replicas: 4}
  own:
    engine: {kind: openai, command: ["serve", "--port", "{port}"], env: {TOKEN: "hush"}}
    model: whatever
"""


@pytest.fixture
async def operator() -> Operator:
    return await Operator(FILE).start()


@pytest.fixture
async def stranger(operator: Operator) -> AsyncIterator[httpx.AsyncClient]:
    """A client without the token."""
    transport = httpx.ASGITransport(operator.app(), raise_app_exceptions=False)
    async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
        yield client


@pytest.fixture
async def admin(stranger: httpx.AsyncClient) -> httpx.AsyncClient:
    """A client with the token."""
    stranger.headers["Authorization"] = "Bearer token"
    return stranger
