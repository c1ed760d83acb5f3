"""The words that a server and its keeper exchange: JSON lines on a UNIX socket. Pure.

    server → keeper   {"id": 1, "op": "hello", "version": 1, "generation": "gen_…", "orphan_grace_s": 60}
                      {"id": 2, "op": "launch", "spec": {…}}          → {"pid": 4711}
                      {"id": 3, "op": "mark_ready", "replica_id": …, "is_ready": true}
                      {"id": 4, "op": "terminate" | "kill", "replica_id": …}
                      {"id": 5, "op": "held"}                         → {"engines": [{…}, …]}
                      {"id": 6, "op": "heard", "replica_id": …}       the exit of this engine was taken note of
                      {"id": 7, "op": "shutdown"}
    keeper → server   {"id": 2, "result": {…}} or {"id": 2, "error": {"code": …, "message": …}}
                      {"event": "exit", "replica_id": …, "exit_code": …, "signal": …, "last_words": …}

Codes of errors: those of `stoker.errors`, `taken` (another server lives) and `version` (this keeper ends itself).

The first message must be `hello`. Anything that is not a line of JSON of at most `MAX_LINE_BYTES` ends the connection;
engines are then held as after the death of a server.
"""

from __future__ import annotations

import json
from typing import Any

VERSION = 1
MAX_LINE_BYTES = 2**20
"""Room for the longest argv and environment that Linux accepts in practice, and a bound on a hostile peer."""


class ProtocolError(Exception):
    """The peer said something that is not of this protocol."""


def encode(message: dict[str, Any]) -> bytes:
    """Return one line."""
    return json.dumps(message, separators=(",", ":")).encode() + b"\n"


def decode(line: bytes) -> dict[str, Any]:
    """Return the message of one line.

    Raises:
        ProtocolError: it is not a JSON object.
    """
    try:
        message = json.loads(line)
    except ValueError as error:
        raise ProtocolError(f"not JSON: {line[:80]!r}") from error
    if not isinstance(message, dict):
        raise ProtocolError(f"not an object: {line[:80]!r}")
    return message
