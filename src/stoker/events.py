"""What one room tells another without importing it: plain values on a synchronous bus. Pure.

A subscriber must return at once; anything longer belongs in its own task.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeVar


@dataclass(frozen=True, slots=True)
class DeploymentChanged:
    """A deployment was created, changed, moved or deleted (`revision` is then None)."""

    deployment: str
    revision: str | None


@dataclass(frozen=True, slots=True)
class ReplicaMoved:
    """A replica entered another status.

    Attributes:
        took_s: seconds spent in the status that was left.
        reason: why, in one clause, as the decision said it.
    """

    deployment: str
    replica_id: str
    from_status: str
    to_status: str
    took_s: float
    reason: str


@dataclass(frozen=True, slots=True)
class KeeperLost:
    """The keeper died, and every engine with it; somebody must find the fleet another one."""

    detail: str


Event = DeploymentChanged | ReplicaMoved | KeeperLost
_E = TypeVar("_E", bound=Event)


class EventBus:
    """Delivers each event to its subscribers in the order of their subscription."""

    def __init__(self) -> None:
        self._subscribers: dict[type[Event], list[Callable[[Event], None]]] = {}

    def subscribe(self, kind: type[_E], handler: Callable[[_E], None]) -> None:
        """Call `handler` for every later event of exactly this kind."""
        self._subscribers.setdefault(kind, []).append(handler)  # type: ignore[arg-type]

    def publish(self, event: Event) -> None:
        """Hand the event to every subscriber, synchronously."""
        for handler in self._subscribers.get(type(event), ()):
            handler(event)
