"""A simulated power cut: the disk image as it is at one instant, mounted elsewhere, holds every acknowledged row."""

import os
import shutil
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

IMAGE_MIB = 96


def run(*command: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([str(word) for word in command], capture_output=True, text=True)


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[[Path, Path], None]]:
    """Mount ext4 images on loop devices; skip where this machine cannot."""
    if os.geteuid() != 0:
        pytest.skip("SKIPPED FAULT TEST: a simulated power cut needs root")
    if missing := [name for name in ("mkfs.ext4", "mount", "umount", "fsck.ext4") if shutil.which(name) is None]:
        pytest.skip(f"SKIPPED FAULT TEST: {', '.join(missing)} missing; apt-get install e2fsprogs mount")
    mounted: list[Path] = []

    def mount_image(image: Path, at: Path) -> None:
        at.mkdir()
        done = run("mount", "-o", "loop", image, at)
        if done.returncode != 0:
            pytest.skip(f"SKIPPED FAULT TEST: loop devices do not work here: {done.stderr.strip()}")
        mounted.append(at)

    yield mount_image
    for at in reversed(mounted):
        if run("umount", at).returncode != 0:
            run("umount", "--lazy", at)


@pytest.mark.root
def test_a_power_cut_loses_no_acknowledged_row(
    tmp_path: Path,
    mount: Callable[[Path, Path], None],
    start_recording: Callable[[Path], Any],
    stored_rows: Callable[[Path], set[str]],
) -> None:
    image, copy = tmp_path / "disk.img", tmp_path / "copy.img"
    with image.open("wb") as file:
        file.truncate(IMAGE_MIB * 2**20)
    assert run("mkfs.ext4", "-q", image).returncode == 0
    mount(image, tmp_path / "disk")

    recording = start_recording(tmp_path / "disk" / "ledger.sqlite3")
    try:
        recording.read_until(4000)
        # The instant: nothing is written or acknowledged any more, and what the file system still holds in memory
        # never reaches the copy.
        recording.process.send_signal(signal.SIGSTOP)
        os.waitpid(recording.process.pid, os.WUNTRACED)
        shutil.copyfile(image, copy)
        recording.read_ready()
    finally:
        recording.process.kill()
        recording.process.wait()

    assert run("fsck.ext4", "-p", copy).returncode in {0, 1}, "the journal could not be replayed"
    mount(copy, tmp_path / "after")
    assert len(recording.acknowledged) >= 4000
    assert set(recording.acknowledged) - stored_rows(tmp_path / "after" / "ledger.sqlite3") == set()
