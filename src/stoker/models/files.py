"""A verified weight file as a value. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any


@dataclass(frozen=True, slots=True)
class ModelFile:
    """Weights on this disk, verified.

    Attributes:
        context_tokens: the longest context that the model was trained for, None when unknown.
        has_chat_template: whether chat completions make sense.
    """

    name: str
    path: Path
    sha256: str
    size_bytes: int
    context_tokens: int | None
    has_chat_template: bool
    metadata: Mapping[str, Any] = field(default_factory=dict)
