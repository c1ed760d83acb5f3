"""With fsync failing no row is acknowledged; afterwards recording goes on and nothing acknowledged is missing."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

HERE = Path(__file__).parent


@pytest.fixture(scope="module")
def shim(tmp_path_factory: pytest.TempPathFactory) -> Path:
    compiler = shutil.which("gcc") or shutil.which("cc")
    if compiler is None:
        pytest.skip("SKIPPED FAULT TEST: no C compiler; apt-get install gcc libc6-dev")
    built = tmp_path_factory.mktemp("shim") / "fsync_fault.so"
    subprocess.run(
        [compiler, "-shared", "-fPIC", "-Wall", "-Werror", "-o", str(built), str(HERE / "fsync_fault.c"), "-ldl"],
        check=True,
    )
    return built


def test_no_row_is_acknowledged_while_fsync_fails(
    tmp_path: Path, shim: Path, stored_rows: Callable[[Path], set[str]]
) -> None:
    path, fault = tmp_path / "ledger.sqlite3", tmp_path / "fault"
    run = subprocess.run(
        [sys.executable, str(HERE / "fsync_fault_program.py"), str(path), str(fault)],
        env={**os.environ, "LD_PRELOAD": str(shim), "STOKER_TEST_FSYNC_FAULT": str(fault)},
        stdout=subprocess.PIPE,
        check=True,
    )
    ends = json.loads(run.stdout)
    assert set(ends["before"].values()) == {"stored"}
    assert len(ends["during"]) == 100
    assert all("could not be written" in end and "check the disk" in end for end in ends["during"].values())
    assert "could not be written" in ends["key"]
    assert set(ends["after"].values()) == {"stored"}

    stored = stored_rows(path)
    assert set(ends["before"]) | set(ends["after"]) <= stored
    # A failed intent may or may not exist; its later settlement is acknowledged only where it does.
    for request_id, end in ends["late"].items():
        assert (end == "stored") == (f"s {request_id}" in stored)
