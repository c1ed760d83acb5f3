"""Slots: never held twice, and whose content may lie in them."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from stoker.fleet.domain.admission import choose_slot
from stoker.fleet.domain.slots import SlotTable


def table(limit: int, *used: tuple[str, str | None]) -> SlotTable:
    """Return a table whose first slots were used once and given back in order."""
    slots = SlotTable(limit)
    for slot, (tenant, session) in enumerate(used):
        slots.take(slot, tenant, session)
    for slot in range(len(used)):
        slots.give_back(slot)
    return slots


@pytest.mark.parametrize(
    ("slots", "tenant", "session", "expected"),
    [
        pytest.param(table(2), "acme", None, (2, 0), id="an empty slot for whoever comes first"),
        pytest.param(table(2, ("acme", None)), "acme", None, (1, 0), id="the tenant's own slot"),
        pytest.param(table(2, ("acme", None)), "bolt", None, (2, 1), id="an empty one rather than a stranger's"),
        pytest.param(table(1, ("acme", None)), "bolt", None, (3, 0), id="a stranger's when there is no other"),
        pytest.param(table(3, ("acme", "x"), ("acme", "y")), "acme", "y", (0, 1), id="the same session's"),
        pytest.param(table(2, ("acme", "x"), ("acme", "y")), "bolt", "x", (3, 0), id="sessions do not cross tenants"),
    ],
)
def test_match(slots: SlotTable, tenant: str, session: str | None, expected: tuple[int, int]) -> None:
    assert slots.match(tenant, session) == expected


def test_reuse_is_for_the_same_tenant_and_for_engines_that_started_empty() -> None:
    slots = SlotTable(1)
    assert slots.take(0, "acme", None)
    slots.give_back(0)
    assert slots.take(0, "acme", None)
    slots.give_back(0)
    assert not slots.take(0, "bolt", None)
    adopted = SlotTable(1, is_fresh=False)
    assert not adopted.take(0, "acme", None)


def test_session_beats_load_and_load_decides_among_equals() -> None:
    busy, idle = table(4, ("acme", "x")), table(4)
    busy.take(1, "bolt", None)
    busy.take(2, "bolt", None)
    assert choose_slot([("busy", busy), ("idle", idle)], "acme", "x") == ("busy", 0)
    assert choose_slot([("busy", busy), ("idle", idle)], "cube", None) == ("idle", 0)
    assert choose_slot([("busy", busy), ("idle", idle)], "cube", None, frozenset({"idle"})) == ("busy", 3)
    assert choose_slot([], "cube", None) is None


class Slots(RuleBasedStateMachine):
    """Takes, gives back and resizes in any order, against a model that is only a set."""

    def __init__(self) -> None:
        super().__init__()
        self.slots = SlotTable(2)
        self.held: dict[int, str] = {}

    @rule(tenant=st.sampled_from("abc"), session=st.sampled_from([None, "x", "y"]))
    def take(self, tenant: str, session: str | None) -> None:
        match = self.slots.match(tenant, session)
        assert (match is not None) == self.slots.has_free
        if match is not None:
            assert match.slot not in self.held
            assert match.slot < self.slots.limit
            self.slots.take(match.slot, tenant, session)
            self.held[match.slot] = tenant

    @precondition(lambda self: self.held)
    @rule(data=st.data())
    def give_back(self, data: st.DataObject) -> None:
        slot = data.draw(st.sampled_from(sorted(self.held)))
        del self.held[slot]
        self.slots.give_back(slot)

    @rule(limit=st.integers(1, 5))
    def resize(self, limit: int) -> None:
        self.slots.resize(limit)

    @invariant()
    def counts(self) -> None:
        assert self.slots.ongoing == len(self.held)
        inside = sum(slot < self.slots.limit for slot in self.held)
        assert self.slots.has_free == (len(self.held) < self.slots.limit and inside < self.slots.limit)


TestSlots = Slots.TestCase


@given(st.lists(st.sampled_from("abc"), min_size=1, max_size=20))
def test_law_reuse_is_never_granted_after_a_stranger(tenants: list[str]) -> None:
    slots, last = SlotTable(1), None
    for tenant in tenants:
        assert slots.take(0, tenant, None) == (last in (None, tenant))
        slots.give_back(0)
        last = tenant
