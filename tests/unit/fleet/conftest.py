"""Fixtures of the fleet's tests."""

from __future__ import annotations

import pytest

from stoker.testing.fleet import FleetHarness


@pytest.fixture
async def harness() -> FleetHarness:
    return FleetHarness()
