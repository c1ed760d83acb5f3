"""Where OpenAI-compatible servers answer: the routes that the adapters have in common. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from stoker.fleet.ports import Surface

PATHS: Mapping[Surface, str] = MappingProxyType(
    {
        "chat.completions": "/v1/chat/completions",
        "completions": "/v1/completions",
        "embeddings": "/v1/embeddings",
        "infill": "/infill",
        "responses": "/v1/responses",
        "messages": "/v1/messages",
        "tokenize": "/tokenize",
    }
)
