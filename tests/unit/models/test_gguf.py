"""GGUF headers, hostile ones included."""

from __future__ import annotations

import struct
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from stoker.errors import ModelUnavailable
from stoker.models.gguf import read_gguf
from stoker.testing.gguf import tiny_gguf


def written(folder: Path, content: bytes) -> Path:
    path = folder / "weights.gguf"
    path.write_bytes(content)
    return path


def test_the_header_says_what_the_engine_needs(tmp_path: Path) -> None:
    found = read_gguf(written(tmp_path, tiny_gguf()))
    assert found.context_tokens == 512
    assert found.has_chat_template
    assert dict(found.facts) == {
        "architecture": "llama",
        "name": "Tiny",
        "context_length": 512,
        "block_count": 2,
        "embedding_length": 64,
        "head_count": 4,
        "head_count_kv": 2,
        "vocabulary_size": 4,
        "has_chat_template": True,
        "tensor_bytes": 2048,
        "num_tensors": 2,
    }


def test_head_counts_may_differ_by_layer(tmp_path: Path) -> None:
    found = read_gguf(written(tmp_path, tiny_gguf({"llama.attention.head_count_kv": [2, 0, 2]})))
    assert found.facts["head_count_kv"] == [2, 0, 2]


def test_a_base_model_has_no_chat_template(tmp_path: Path) -> None:
    content = tiny_gguf({"tokenizer.chat_template": None, "llama.context_length": None})
    found = read_gguf(written(tmp_path, content))
    assert not found.has_chat_template
    assert found.context_tokens is None


@given(cut=st.integers(0, len(tiny_gguf()) - 1))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_wherever_a_file_is_cut_off_it_is_seen_and_named(tmp_path: Path, cut: int) -> None:
    path = written(tmp_path, tiny_gguf()[:cut])
    with pytest.raises(ModelUnavailable, match=r"weights\.gguf"):
        read_gguf(path)


@given(at=st.integers(0, len(tiny_gguf()) - 2049), value=st.binary(min_size=1, max_size=8))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], max_examples=300)
def test_no_bytes_in_the_header_make_it_crash(tmp_path: Path, at: int, value: bytes) -> None:
    content = tiny_gguf()
    path = written(tmp_path, content[:at] + value + content[at + len(value) :])
    try:
        read_gguf(path)
    except ModelUnavailable as exc:
        assert "weights.gguf" in exc.message  # noqa: PT017 - both outcomes are right


@pytest.mark.parametrize(
    ("content", "words"),
    [
        pytest.param(b"<!DOCTYPE html><html></html>", "not a GGUF file: it begins with b'<!DO'", id="a web page"),
        pytest.param(b"", "holds 0 bytes", id="nothing"),
        pytest.param(b"GGUF" + struct.pack("<IQQ", 1, 0, 0) + b"\0" * 8, "version 1", id="an old version"),
        pytest.param(b"GGUF" + struct.pack("<IQQ", 3, 2**60, 1) + b"\0" * 8, "claims", id="absurdly many tensors"),
        pytest.param(b"GGUF" + struct.pack("<IQQ", 3, 0, 2**60) + b"\0" * 8, "claims", id="absurdly many keys"),
        pytest.param(
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q", 2**62), "a text of", id="an absurdly long key"
        ),
        pytest.param(
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sIIQ", 1, b"k", 9, 0, 2**24),
            "cut off",
            id="an array",
        ),
        pytest.param(
            b"GGUF" + struct.pack("<IQQ", 3, 0, 1) + struct.pack("<Q1sI", 1, b"k", 9) + struct.pack("<IQ", 9, 1) * 8,
            "an array of",
            id="arrays of arrays of arrays",
        ),
        pytest.param(tiny_gguf({"split.count": 3}), "one of 3 parts", id="a part of a model"),
        pytest.param(tiny_gguf({"general.alignment": 0}), "alignment of 0", id="no alignment"),
        pytest.param(tiny_gguf()[:-1], "header 544 + tensors 2048 = 2592 bytes", id="a byte too short"),
    ],
)
def test_what_is_wrong_is_said(tmp_path: Path, content: bytes, words: str) -> None:
    with pytest.raises(ModelUnavailable) as caught:
        read_gguf(written(tmp_path, content))
    assert words in caught.value.message


def test_the_other_byte_order_is_read(tmp_path: Path) -> None:
    key = b"general.architecture"
    content = b"GGUF" + struct.pack(">IQQ", 3, 0, 1) + struct.pack(">Q", len(key)) + key
    content += struct.pack(">IQ", 8, 5) + b"llama"
    assert read_gguf(written(tmp_path, content)).facts["architecture"] == "llama"
