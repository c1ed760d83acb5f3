"""A recording subprocess, what it acknowledged, and what a ledger file holds."""

import os
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parent / "recording_program.py"


class RecordingProcess:
    """The program of `recording_program.py`, with the rows that it saw acknowledged."""

    def __init__(self, ledger_path: Path) -> None:
        self.process = subprocess.Popen([sys.executable, str(PROGRAM), str(ledger_path)], stdout=subprocess.PIPE)
        self.acknowledged: list[str] = []
        self._rest = b""

    def read_until(self, num_rows: int) -> None:
        """Read acknowledgements until there are so many."""
        while len(self.acknowledged) < num_rows:
            assert self._read_some(), "the recording process ended by itself"

    def read_rest(self) -> None:
        """Read what is left in the pipe of an ended process."""
        while self._read_some():
            pass

    def read_ready(self) -> None:
        """Read what is in the pipe now, without waiting."""
        assert self.process.stdout is not None
        os.set_blocking(self.process.stdout.fileno(), False)
        with suppress(BlockingIOError):
            self.read_rest()

    def _read_some(self) -> bool:
        assert self.process.stdout is not None
        got = os.read(self.process.stdout.fileno(), 65536)
        *lines, self._rest = (self._rest + got).split(b"\n")
        self.acknowledged.extend(line.decode() for line in lines)
        return bool(got)


@pytest.fixture
def start_recording() -> Iterator[Callable[[Path], RecordingProcess]]:
    started: list[RecordingProcess] = []

    def start(ledger_path: Path) -> RecordingProcess:
        started.append(RecordingProcess(ledger_path))
        return started[-1]

    yield start
    for recording in started:
        recording.process.kill()
        recording.process.wait()
        if recording.process.stdout is not None:
            recording.process.stdout.close()


@pytest.fixture
def stored_rows() -> Callable[[Path], set[str]]:
    def read(ledger_path: Path) -> set[str]:
        connection = sqlite3.connect(ledger_path)
        try:
            assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            intents = {f"i {row[0]}" for row in connection.execute("SELECT request_id FROM requests")}
            settlements = {
                f"s {row[0]}"
                for row in connection.execute("SELECT request_id FROM settlements JOIN attempts USING (request_id)")
            }
        finally:
            connection.close()
        return intents | settlements

    return read
