"""What the machine may refuse a server: its port, its state directory, its disk, and a binding open to strangers."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import socket
import stat
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from stoker.testing.server import RunningStoker, free_port
from tests.acceptance.fakes import command_line, config, deployment, wait_until
from tests.acceptance.processes import belonging_to

CONFIG = config(deployment("chat"))
needs_root = pytest.mark.skipif(os.geteuid() != 0, reason="mounting needs root")


@pytest.fixture
def folder() -> Iterator[Path]:
    path = Path(tempfile.mkdtemp(prefix="stk-h-"))
    yield path
    shutil.rmtree(path, ignore_errors=True)


@contextlib.contextmanager
def mounted(at: Path, *arguments: str) -> Iterator[None]:
    """A mount at `at` for as long as the block lasts; skips the test where this machine allows none."""
    done = subprocess.run(["mount", *arguments, str(at)], capture_output=True, text=True, check=False)
    if done.returncode != 0:
        pytest.skip(f"mount is not allowed here: {done.stderr.strip()}")
    try:
        yield
    finally:
        subprocess.run(["umount", "--lazy", str(at)], check=True)


def up(state_dir: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Start a server that must refuse to: returns what it said, and checks that nothing of it is left."""
    done = command_line(state_dir, "up", "--state-dir", str(state_dir), *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.startswith("error: ")
    assert "\n  try: " in done.stderr  # what mends it
    return done


def test_a_port_that_is_taken_is_named_and_nothing_is_left_running(folder: Path) -> None:
    with socket.socket() as holder:
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = holder.getsockname()[1]
        said = up(folder, "--port", str(port)).stderr
    assert f"127.0.0.1:{port}" in said
    assert "--port" in said
    assert belonging_to(folder) == {}
    with RunningStoker(CONFIG, state_dir=folder) as stoker:  # the failed start left nothing in the way
        assert stoker.chat("chat", max_tokens=1).status == 200


def test_an_address_that_is_not_this_machines_is_named(folder: Path) -> None:
    (folder / "stoker.yaml").write_text(f"keys: [{{name: one, sha256: '{'0' * 64}'}}]\n{CONFIG}")
    said = up(folder, "--config", str(folder / "stoker.yaml"), "--host", "192.0.2.1", "--port", "0").stderr
    assert "192.0.2.1" in said
    assert belonging_to(folder) == {}


def test_a_file_in_place_of_the_state_directory_is_named(folder: Path) -> None:
    (folder / "state").write_text("in the way")
    said = up(folder / "state", "--port", "0").stderr
    assert str(folder / "state") in said
    assert "--state-dir" in said
    assert (folder / "state").read_text() == "in the way"


@needs_root
@pytest.mark.root
def test_a_read_only_state_directory_is_named(folder: Path) -> None:
    with mounted(folder, "-t", "tmpfs", "-o", "ro", "tmpfs"):
        said = up(folder, "--port", "0").stderr
    assert str(folder) in said
    assert os.strerror(errno.EROFS) in said


@needs_root
@pytest.mark.root
def test_a_state_directory_that_became_read_only_is_named(folder: Path) -> None:
    with RunningStoker(CONFIG, state_dir=folder) as stoker:
        assert stoker.chat("chat", max_tokens=1).status == 200
    with mounted(folder, "--bind", str(folder)):
        subprocess.run(["mount", "-o", "remount,ro,bind", str(folder)], check=True)
        said = up(folder, "--port", "0").stderr
    assert str(folder) in said
    assert os.strerror(errno.EROFS) in said


def test_a_second_stoker_on_the_same_state_directory_is_refused_and_the_first_goes_on(folder: Path) -> None:
    with RunningStoker(CONFIG, state_dir=folder) as first:
        assert first.chat("chat", max_tokens=1).status == 200
        (before,) = first.replicas()
        assert first.process is not None
        said = up(folder, "--port", str(free_port())).stderr
        assert f"pid {first.process.pid}" in said
        assert str(folder) in said
        (after,) = first.replicas()
        assert after["replica_id"] == before["replica_id"]
        assert first.chat("chat", max_tokens=1).status == 200
        assert command_line(folder, "ps").returncode == 0  # the first is still published


def test_a_binding_open_to_strangers_needs_a_key(folder: Path) -> None:
    port = str(free_port())
    said = up(folder, "--host", "0.0.0.0", "--port", port).stderr
    assert "0.0.0.0" in said
    assert "stoker keys create" in said
    assert belonging_to(folder) == {}
    with RunningStoker(CONFIG, state_dir=folder):
        made = command_line(folder, "keys", "create", "mine", "--json")
        assert made.returncode == 0, made.stderr
    with RunningStoker(CONFIG, state_dir=folder, arguments=("--host", "0.0.0.0")) as opened:
        assert opened.chat("chat", max_tokens=1).status == 401
        secret = next(word for word in made.stdout.replace('"', " ").split() if word.startswith("sk-"))
        answer = opened.request(
            "POST",
            "/v1/chat/completions",
            {"model": "chat", "messages": [{"role": "user", "content": "Hi"}], "max_tokens": 1},
            headers={"Authorization": f"Bearer {secret}"},
        )
        assert answer.status == 200


def test_the_admin_token_and_the_state_directory_are_the_owners_alone(folder: Path) -> None:
    with RunningStoker(CONFIG, state_dir=folder):
        assert stat.S_IMODE((folder / "admin-token").stat().st_mode) == 0o600
        for path in (folder, folder / "run", folder / "logs"):
            assert stat.S_IMODE(path.stat().st_mode) == 0o700


@needs_root
@pytest.mark.root
def test_a_full_disk_acknowledges_nothing_and_recovers_when_there_is_room(folder: Path) -> None:
    state_dir = folder / "s"
    state_dir.mkdir()
    with (
        mounted(state_dir, "-t", "tmpfs", "-o", "size=24m", "tmpfs"),
        RunningStoker(CONFIG, state_dir=state_dir) as stoker,
    ):
        assert stoker.chat("chat", max_tokens=1).status == 200
        filler = state_dir / "filler"
        with filler.open("wb", buffering=0) as file, contextlib.suppress(OSError):
            while True:
                file.write(b"\0" * 65536)
        deadline = time.monotonic() + 60
        refused = []
        while len(refused) < 4:  # what still fits into pages that the ledger already has is served
            assert time.monotonic() < deadline, "the disk is full and everything is acknowledged"
            answer = stoker.chat("chat", "word " * 50, max_tokens=1, stream=len(refused) % 2 == 1)
            if answer.status != 200 or not answer.is_whole:
                refused.append(answer)
        for answer in refused:
            assert b"ledger_unavailable" in answer.body
            assert b"[DONE]" not in answer.body
        assert stoker.request("GET", "/health").status == 200
        filler.unlink()
        wait_until(lambda: stoker.chat("chat", max_tokens=1).status == 200)
        assert stoker.stop() == 0
