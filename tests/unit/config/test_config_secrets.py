"""References to secrets."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from stoker.config.secrets import resolve_key_secrets, resolve_secret
from stoker.config.settings import KeySettings
from stoker.errors import ConfigInvalid

SECRET = "sk-very-secret"


def program(folder: Path, body: str) -> Path:
    path = folder / "give"
    path.write_text(f"#!{sys.executable}\n{body}\n")
    path.chmod(0o700)
    return path


def test_a_variable_gives_its_value() -> None:
    assert resolve_secret("env:KEY", environ={"KEY": SECRET}) == SECRET


def test_a_file_of_the_owner_gives_its_line(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET + "\n")
    path.chmod(0o600)
    assert resolve_secret(f"file:{path}") == SECRET


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o620, 0o602])
def test_a_file_that_others_can_reach_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key"
    path.write_text(SECRET)
    path.chmod(mode)
    with pytest.raises(ConfigInvalid, match=f"mode {mode:04o}.*chmod 600") as caught:
        resolve_secret(f"file:{path}")
    assert SECRET not in str(caught.value)


def test_a_program_gives_its_output_and_no_shell_reads_its_arguments(tmp_path: Path) -> None:
    path = program(tmp_path, "import sys; print(sys.argv[1])")
    assert resolve_secret(f"exec:{path} '$(id) ; x'") == "$(id) ; x"


def test_a_program_that_others_can_change_is_refused(tmp_path: Path) -> None:
    path = program(tmp_path, "print('x')")
    path.chmod(0o722)
    with pytest.raises(ConfigInvalid, match="others can change it"):
        resolve_secret(f"exec:{path}")


@pytest.mark.parametrize(
    ("body", "words"),
    [
        pytest.param(f"print('{SECRET}'); raise SystemExit(3)", "ended with status 3", id="it fails"),
        pytest.param(f"print('{SECRET}' * 9000)", "more than 64 KiB", id="it floods"),
        pytest.param(f"print('{SECRET}\\n{SECRET}')", "one line", id="it prints two lines"),
        pytest.param("pass", "one line that is not empty", id="it prints nothing"),
        pytest.param(f"import os; os.write(1, b'{SECRET}' + bytes([255]))", "not text", id="it prints bytes"),
        pytest.param(
            f"import os, time; os.write(1, b'{SECRET}')\nif os.fork() == 0: time.sleep(600)",
            "did not end within",
            id="its child holds the pipe",
        ),
    ],
)
def test_a_program_that_misbehaves_is_named_and_its_output_never_shown(tmp_path: Path, body: str, words: str) -> None:
    path = program(tmp_path, body)
    with pytest.raises(ConfigInvalid, match=words) as caught:
        resolve_secret(f"exec:{path}", exec_timeout_s=1.0 if "fork" in body else 60.0)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize(
    "reference", ["env:ABSENT", "file:/nowhere", "file:/dev/null", "exec:no-such-program", "exec:", "x"]
)
def test_what_is_not_there_is_refused(reference: str) -> None:
    with pytest.raises(ConfigInvalid):
        resolve_secret(reference, environ={"PATH": "/usr/bin"})


def test_all_references_that_fail_are_reported_together() -> None:
    keys = [KeySettings(name=name, secret=f"env:{name}") for name in ("A", "B", "C")]
    with pytest.raises(ConfigInvalid) as caught:
        resolve_key_secrets(keys, environ={"B": SECRET})
    assert [problem.split(":")[0] for problem in caught.value.problems] == ["keys[0].secret (A)", "keys[2].secret (C)"]
    assert resolve_key_secrets(keys[1:2], environ={"B": SECRET}) == {"B": SECRET}
