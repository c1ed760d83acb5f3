"""Names that the writer of an unknown one may have meant. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches

MAX_SUGGESTIONS = 3
_CUTOFF_RATIO = 0.5  # by trial: "smolm" still finds "smollm2-135m", "gpt-4o" does not


def nearest_names(wanted: str, known: Iterable[str]) -> tuple[str, ...]:
    """Return at most `MAX_SUGGESTIONS` of `known`, the likeliest first, compared without regard to case.

    A name that begins with `wanted`, or the other way round, counts as near however long the rest is.
    """
    lowered = {name.lower(): name for name in sorted(known)}
    asked = wanted[:128].lower()
    found = get_close_matches(asked, lowered, n=MAX_SUGGESTIONS, cutoff=_CUTOFF_RATIO)
    if len(asked) >= 3:
        found += [name for name in lowered if name not in found and (name.startswith(asked) or asked.startswith(name))]
    return tuple(lowered[name] for name in found[:MAX_SUGGESTIONS])
