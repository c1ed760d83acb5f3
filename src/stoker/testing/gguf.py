"""Tiny weight files in the GGUF format, for tests of everything but inference. Pure."""

from __future__ import annotations

import struct
from collections.abc import Mapping
from typing import Any

_DEFAULTS: dict[str, Any] = {
    "general.architecture": "llama",
    "general.name": "Tiny",
    "llama.context_length": 512,
    "llama.block_count": 2,
    "llama.embedding_length": 64,
    "llama.attention.head_count": 4,
    "llama.attention.head_count_kv": 2,
    "tokenizer.chat_template": "{{ messages }}",
    "tokenizer.ggml.tokens": ["<s>", "</s>", "a", "b"],
}
_TENSOR_VALUES = 256
_ALIGNMENT = 32


def tiny_gguf(facts: Mapping[str, Any] | None = None, *, num_tensors: int = 2, padding_bytes: int = 0) -> bytes:
    """Return a small valid file.

    Args:
        facts: keys laid over the default ones; None as a value leaves a key out.
        padding_bytes: length of a text that makes the file larger and different.
    """
    chosen = {**_DEFAULTS, **(facts or {})}
    if padding_bytes:
        chosen["general.description"] = "x" * padding_bytes
    pairs = [(key, value) for key, value in chosen.items() if value is not None]
    header = b"GGUF" + struct.pack("<IQQ", 3, num_tensors, len(pairs))
    for key, value in pairs:
        header += _text(key) + _typed(value)
    tensor_bytes = _TENSOR_VALUES * 4
    for index in range(num_tensors):
        header += _text(f"blk.{index}.weight") + struct.pack("<IQIQ", 1, _TENSOR_VALUES, 0, index * tensor_bytes)
    header += b"\0" * (-len(header) % _ALIGNMENT)
    return header + bytes(range(256)) * (tensor_bytes // 256) * num_tensors


def _text(text: str) -> bytes:
    encoded = text.encode()
    return struct.pack("<Q", len(encoded)) + encoded


def _typed(value: Any) -> bytes:
    if isinstance(value, str):
        return struct.pack("<I", 8) + _text(value)
    if isinstance(value, int):
        return struct.pack("<II", 4, value)
    if all(isinstance(item, int) for item in value):
        return struct.pack(f"<IIQ{len(value)}I", 9, 4, len(value), *value)
    return struct.pack("<IIQ", 9, 8, len(value)) + b"".join(_text(item) for item in value)
