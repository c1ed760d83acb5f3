"""GGUF headers: what a weight file says of itself, and whether all of its tensors are there. Reads files.

The file may be hostile: every count and length is held against what is left of the file and against a ceiling before
anything is allocated for it. Tensor data is never read.

Source: ggml's docs/gguf.md (versions 2 and 3) and the block sizes of ggml's quantised types.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, Literal

from stoker.errors import ModelUnavailable

MAGIC = b"GGUF"
_MAX_KEYS = 65_536
_MAX_TENSORS = 1_000_000
_MAX_KEY_BYTES = 65_535
_MAX_STRING_BYTES = 16 * 2**20  # the longest chat templates are far below 1 MiB
_MAX_ARRAY_ITEMS = 16 * 2**20  # the largest vocabularies and merge lists are below 1 million
_MAX_HEADER_BYTES = 512 * 2**20
_MAX_KEPT_ITEMS = 4096  # numeric arrays up to this length are kept (per-layer head counts)
_MAX_ARRAY_DEPTH = 3
_MAX_DIMENSIONS = 4
_DEFAULT_ALIGNMENT = 32

_STRING, _ARRAY = 8, 9
_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

# ggml type → (values in a block, bytes of a block)
_BLOCKS = {
    0: (1, 4), 1: (1, 2), 2: (32, 18), 3: (32, 20), 6: (32, 22), 7: (32, 24), 8: (32, 34), 10: (256, 84),
    11: (256, 110), 12: (256, 144), 13: (256, 176), 14: (256, 210), 15: (256, 292), 16: (256, 66), 17: (256, 74),
    18: (256, 98), 19: (256, 50), 20: (32, 18), 21: (256, 110), 22: (256, 82), 23: (256, 136), 24: (1, 1),
    25: (1, 2), 26: (1, 4), 27: (1, 8), 28: (1, 8), 29: (256, 56), 30: (1, 2), 34: (256, 54), 35: (256, 66),
    39: (32, 17),
}  # fmt: skip

_OF_ARCHITECTURE = {
    "context_length": "context_length",
    "block_count": "block_count",
    "embedding_length": "embedding_length",
    "attention.head_count": "head_count",
    "attention.head_count_kv": "head_count_kv",
    "attention.key_length": "key_length",
    "attention.value_length": "value_length",
    "attention.sliding_window": "sliding_window",
    "pooling_type": "pooling_type",
    "vocab_size": "vocabulary_size",
}


@dataclass(frozen=True, slots=True)
class GgufFacts:
    """What a GGUF header says.

    Attributes:
        facts: `architecture name file_type context_length block_count embedding_length head_count head_count_kv
            key_length value_length sliding_window pooling_type vocabulary_size has_chat_template tensor_bytes
            num_tensors`, each only when the file says so. Head counts may be a list with one number per layer.
    """

    facts: Mapping[str, Any]

    @property
    def context_tokens(self) -> int | None:
        """The context that the model was trained for."""
        value = self.facts.get("context_length")
        return value if isinstance(value, int) and value > 0 else None

    @property
    def has_chat_template(self) -> bool:
        """Whether the tokenizer brings a chat template."""
        return bool(self.facts.get("has_chat_template"))


class _Malformed(Exception):
    """The bytes are not what the format says; the text ends a sentence that names the file."""


def read_gguf(path: Path) -> GgufFacts:
    """Read the header of a file and check that all of its tensors lie inside it.

    Raises:
        ModelUnavailable: not a GGUF file, or damaged, or cut off; the file is named.
    """
    try:
        with path.open("rb") as file:
            size_bytes = file.seek(0, 2)
            file.seek(0)
            return GgufFacts(_Header(file, size_bytes).read())
    except _Malformed as exc:
        raise ModelUnavailable(f"{path} {exc}") from exc
    except OSError as exc:
        raise ModelUnavailable(f"{path} cannot be read: {exc.strerror or exc}") from exc


class _Header:
    def __init__(self, file: BinaryIO, size_bytes: int) -> None:
        self._file = file
        self._size_bytes = size_bytes
        self._order: Literal["<", ">"] = "<"
        self._at = 0

    def read(self) -> dict[str, Any]:
        if self._size_bytes < 24:
            raise _Malformed(f"is not a GGUF file: it holds {self._size_bytes} bytes")
        if (magic := self._take(4)) != MAGIC:
            raise _Malformed(f"is not a GGUF file: it begins with {magic!r}")
        version = self._number("I")
        if version > 0xFFFF:  # written on a machine with the other byte order
            self._order = ">"
            version = int.from_bytes(version.to_bytes(4, "little"), "big")
        if version not in {2, 3}:
            raise _Malformed(f"is a GGUF file of version {version}; versions 2 and 3 can be read")
        num_tensors, num_keys = self._number("Q"), self._number("Q")
        if num_tensors > _MAX_TENSORS or num_keys > _MAX_KEYS:
            raise _Malformed(f"is damaged: it claims {num_tensors} tensors and {num_keys} keys")
        raw: dict[str, Any] = {}
        for _ in range(num_keys):
            key = self._string(_MAX_KEY_BYTES).decode("utf-8", "replace")
            raw[key] = self._value(self._number("I"), 0)
        parts = raw.get("split.count")
        if isinstance(parts, int) and parts > 1:
            raise _Malformed(f"is one of {parts} parts of a model; merge them into one file (llama-gguf-split --merge)")
        tensor_bytes = self._check_tensors(num_tensors, raw.get("general.alignment", _DEFAULT_ALIGNMENT))
        return _facts(raw) | {"tensor_bytes": tensor_bytes, "num_tensors": num_tensors}

    def _take(self, num_bytes: int) -> bytes:
        if num_bytes > self._size_bytes - self._at:
            raise _Malformed(f"is cut off or damaged: {self._size_bytes} bytes, and its header wants more")
        self._at += num_bytes
        if self._at > _MAX_HEADER_BYTES:
            raise _Malformed(f"is damaged: its header is larger than {_MAX_HEADER_BYTES // 2**20} MiB")
        taken = self._file.read(num_bytes)
        if len(taken) != num_bytes:
            raise _Malformed("became shorter while it was read")
        return taken

    def _number(self, code: str) -> Any:
        return struct.unpack(self._order + code, self._take(struct.calcsize(self._order + code)))[0]

    def _string(self, max_bytes: int = _MAX_STRING_BYTES) -> bytes:
        length = self._number("Q")
        if length > max_bytes:
            raise _Malformed(f"is damaged: a text of {length} bytes at byte {self._at}")
        return self._take(length)

    def _value(self, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._string().decode("utf-8", "replace")
        if kind == _ARRAY:
            return self._array(depth)
        if kind not in _SCALARS:
            raise _Malformed(f"is damaged: value type {kind} at byte {self._at}")
        return self._number(_SCALARS[kind])

    def _array(self, depth: int) -> Any:
        """Read an array: short numeric ones as a list, others as their length."""
        kind, count = self._number("I"), self._number("Q")
        if count > _MAX_ARRAY_ITEMS or depth >= _MAX_ARRAY_DEPTH:
            raise _Malformed(f"is damaged: an array of {count} items at byte {self._at}")
        if kind in _SCALARS:
            code = f"{self._order}{count}{_SCALARS[kind]}"
            content = self._take(struct.calcsize(code))
            return list(struct.unpack(code, content)) if count <= _MAX_KEPT_ITEMS else _Length(count)
        for _ in range(count):
            self._value(kind, depth + 1)
        return _Length(count)

    def _check_tensors(self, num_tensors: int, alignment: Any) -> int:
        """Read the list of tensors and return the bytes that their data takes, all of it inside the file."""
        if not isinstance(alignment, int) or not 1 <= alignment <= 2**20 or alignment & (alignment - 1):
            raise _Malformed(f"is damaged: an alignment of {alignment!r}")
        end_bytes = 0
        for _ in range(num_tensors):
            name = self._string(_MAX_KEY_BYTES).decode("utf-8", "replace")
            num_dimensions = self._number("I")
            if num_dimensions > _MAX_DIMENSIONS:
                raise _Malformed(f"is damaged: tensor {name[:64]!r} has {num_dimensions} dimensions")
            num_values = 1
            for _ in range(num_dimensions):
                num_values *= self._number("Q")
            block_values, block_bytes = _BLOCKS.get(self._number("I"), (2**63, 1))  # an unknown type: at least a byte
            offset_bytes = self._number("Q")
            if num_values:
                end_bytes = max(end_bytes, offset_bytes + -(-num_values // block_values) * block_bytes)
        start_bytes = -(-self._at // alignment) * alignment
        if num_tensors and start_bytes + end_bytes > self._size_bytes:
            raise _Malformed(
                f"is cut off or damaged: header {start_bytes} + tensors {end_bytes} = {start_bytes + end_bytes} bytes, "
                f"and the file holds {self._size_bytes}"
            )
        return end_bytes


class _Length(int):
    """The length of an array whose items were not kept."""


def _facts(raw: Mapping[str, Any]) -> dict[str, Any]:
    facts: dict[str, Any] = {"has_chat_template": any(key.startswith("tokenizer.chat_template") for key in raw)}
    for key in ("architecture", "name", "file_type"):
        if isinstance(value := raw.get(f"general.{key}"), str | int):
            facts[key] = value[:256] if isinstance(value, str) else value
    for key, name in _OF_ARCHITECTURE.items():
        value = raw.get(f"{facts.get('architecture', '')}.{key}")
        if isinstance(value, int | list) and not isinstance(value, _Length):
            facts[name] = value
    tokens = raw.get("tokenizer.ggml.tokens")
    if isinstance(tokens, _Length):
        facts.setdefault("vocabulary_size", int(tokens))
    return facts
