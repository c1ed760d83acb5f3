"""The state directory: one holder, owner only, a stable admin token."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from stoker.errors import StateDirUnusable
from stoker.ledger.statedir import StateDir, default_state_dir, read_admin_token


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def test_it_is_made_for_its_owner_only(tmp_path: Path) -> None:
    path = tmp_path / "a" / "state"
    with StateDir.open(path) as state_dir:
        assert {mode(path), mode(state_dir.run_dir), mode(state_dir.log_dir)} == {0o700}
        assert (path / "lock").read_text() == f"{os.getpid()}\n"
        assert state_dir.ledger_path.parent == path


def test_an_open_one_is_closed_to_others(tmp_path: Path) -> None:
    path = tmp_path / "state"
    path.mkdir(mode=0o755)
    with StateDir.open(path):
        assert mode(path) == 0o700


def test_a_second_stoker_is_refused_by_the_pid_of_the_first(tmp_path: Path) -> None:
    holder = subprocess.Popen(
        [
            sys.executable,
            "-c",
            "import pathlib, sys\nfrom stoker.ledger.statedir import StateDir\n"
            f"held = StateDir.open(pathlib.Path({str(tmp_path)!r}))\nprint('held', flush=True)\nsys.stdin.read()",
        ],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert holder.stdin is not None
    assert holder.stdout is not None
    assert holder.stdout.readline() == b"held\n"
    with pytest.raises(StateDirUnusable, match=f"another Stoker, pid {holder.pid},"):
        StateDir.open(tmp_path)
    holder.kill()
    holder.wait()
    holder.stdin.close()
    holder.stdout.close()
    StateDir.open(tmp_path).close()


def test_it_can_be_taken_again_after_closing(tmp_path: Path) -> None:
    first = StateDir.open(tmp_path)
    with pytest.raises(StateDirUnusable, match="another Stoker"):
        StateDir.open(tmp_path)
    first.close()
    first.close()
    StateDir.open(tmp_path).close()


def test_the_admin_token_is_made_once(tmp_path: Path) -> None:
    assert read_admin_token(tmp_path) is None
    with StateDir.open(tmp_path) as state_dir:
        token = state_dir.admin_token()
        assert state_dir.admin_token() == token == read_admin_token(tmp_path)
    assert mode(tmp_path / "admin-token") == 0o600
    assert len(token) >= 32


def test_a_half_made_token_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "admin-token.new").write_text("half")
    with StateDir.open(tmp_path) as state_dir:
        assert state_dir.admin_token() != "half"


def test_a_file_in_the_way_is_refused(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(StateDirUnusable, match="cannot be used"):
        StateDir.open(tmp_path / "state")


def test_a_read_only_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "state"
    program = (
        "import os, pathlib, sys\nfrom stoker.errors import StateDirUnusable\n"
        "from stoker.ledger.statedir import StateDir\n"
        "if os.geteuid() == 0:\n    os.setgid(65534); os.setuid(65534)\n"
        f"try:\n    StateDir.open(pathlib.Path({str(path)!r}))\n"
        "except StateDirUnusable as error:\n    print(error)\n"
    )
    path.mkdir(mode=0o555)
    for parent in path.parents:
        if parent.stat().st_uid == os.geteuid() and not parent.stat().st_mode & 0o001:
            parent.chmod(parent.stat().st_mode | 0o011)
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert "make it writable" in done.stdout


def test_the_default_place_follows_the_environment() -> None:
    assert default_state_dir({"STOKER_STATE_DIR": "/x/y"}) == Path("/x/y")
    assert default_state_dir({"XDG_STATE_HOME": "/s"}) == Path("/s/stoker")
    assert default_state_dir({}) == Path("~/.local/state/stoker").expanduser()
