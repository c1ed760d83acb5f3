"""The slots of one replica: who holds them, and whose content may still lie in them. Pure, but mutable on purpose.

A grant is on the data path of every request, so this is one small structure with constant-time operations that the
live fleet and the simulator both change in place.
"""

from __future__ import annotations

from typing import NamedTuple


class SlotMatch(NamedTuple):
    """A free slot; the lower `rank`, the better it suits: 0 same session, 1 same tenant, 2 empty, 3 another's."""

    rank: int
    slot: int


class SlotTable:
    """Slots 0 … `limit` − 1.

    Args:
        limit: requests that may hold a slot at once.
        is_fresh: the engine started empty; False after an adoption, when nobody knows what its slots hold.
    """

    __slots__ = (
        "_by_session",
        "_free",
        "_free_by_tenant",
        "_held",
        "_is_fresh",
        "_last_session",
        "_last_tenant",
        "limit",
        "ongoing",
    )

    def __init__(self, limit: int, *, is_fresh: bool = True) -> None:
        self.limit = limit
        self.ongoing = 0
        self._is_fresh = is_fresh
        self._free: dict[int, None] = dict.fromkeys(range(limit))  # least recently used first
        self._free_by_tenant: dict[str, dict[int, None]] = {}
        self._held: set[int] = set()
        self._last_tenant: list[str | None] = [None] * limit
        self._last_session: list[str | None] = [None] * limit
        self._by_session: dict[tuple[str, str], int] = {}

    @property
    def has_free(self) -> bool:
        return self.ongoing < self.limit and bool(self._free)

    def match(self, tenant: str, session: str | None) -> SlotMatch | None:
        """Return the best free slot for this tenant and session, None when all are held. Changes nothing."""
        if self.ongoing >= self.limit or not self._free:
            return None
        if session is not None:
            slot = self._by_session.get((tenant, session))
            if slot is not None and slot in self._free:
                return SlotMatch(0, slot)
        own = self._free_by_tenant.get(tenant)
        if own:
            return SlotMatch(1, next(iter(own)))
        slot = next(iter(self._free))
        return SlotMatch(2 if self._last_tenant[slot] is None and self._is_fresh else 3, slot)

    def take(self, slot: int, tenant: str, session: str | None) -> bool:
        """Hold a free slot; return whether what the engine kept in it may be reused by this tenant."""
        assert slot in self._free, f"slot {slot} is held"
        del self._free[slot]
        self._held.add(slot)
        last_tenant = self._last_tenant[slot]
        last_session = self._last_session[slot]
        if last_tenant is not None:
            own = self._free_by_tenant[last_tenant]
            del own[slot]
            if not own:
                del self._free_by_tenant[last_tenant]
            if last_session is not None and self._by_session.get((last_tenant, last_session)) == slot:
                del self._by_session[last_tenant, last_session]
        self._last_tenant[slot] = tenant
        self._last_session[slot] = session
        if session is not None:
            self._by_session[tenant, session] = slot
        self.ongoing += 1
        return last_tenant == tenant or (last_tenant is None and self._is_fresh)

    def give_back(self, slot: int) -> None:
        """Free a held slot."""
        assert slot in self._held, f"slot {slot} is free"
        self._held.remove(slot)
        self.ongoing -= 1
        if slot >= self.limit:  # the replica was narrowed while this one was held
            return
        self._offer(slot)

    def resize(self, limit: int) -> None:
        """Widen or narrow; slots that are held beyond the new limit vanish when they are given back."""
        missing = limit - len(self._last_tenant)
        self._last_tenant.extend([None] * missing)
        self._last_session.extend([None] * missing)
        for slot in [each for each in self._free if each >= limit]:
            del self._free[slot]
            tenant = self._last_tenant[slot]
            if tenant is not None:
                del self._free_by_tenant[tenant][slot]
        for slot in range(limit):
            if slot not in self._held and slot not in self._free:
                self._offer(slot)
        self.limit = limit

    def _offer(self, slot: int) -> None:
        self._free[slot] = None
        tenant = self._last_tenant[slot]
        if tenant is not None:
            self._free_by_tenant.setdefault(tenant, {})[slot] = None
