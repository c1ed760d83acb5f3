"""What the store asks of a fetcher, and what it tells of its progress. Pure interface."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, Protocol

from stoker.config.sources import Source
from stoker.models.partial import PartFile

Phase = Literal["waiting", "downloading", "unpacking", "verifying"]


@dataclass(frozen=True, slots=True)
class ProgressReport:
    """How far the way of one model onto this disk has come.

    Attributes:
        phase: `waiting` for another process that fetches the same.
        total_bytes: None while unknown.
    """

    name: str
    phase: Phase
    done_bytes: int
    total_bytes: int | None


Progress = Callable[[ProgressReport], None]
Report = Callable[[Phase, int, int | None], None]


class Fetcher(Protocol):
    """Brings the bytes of one kind of source into a part file."""

    async def fetch(self, source: Source, part: PartFile, *, allow_private: bool, report: Report) -> None:
        """Complete `part`. Cancellation leaves it resumable where the kind allows that.

        Raises:
            ModelUnavailable: with the reason in words for the user.
        """
        ...
