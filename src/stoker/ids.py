"""Identifiers: sortable by creation, unguessable, cheap enough for the data path. Touches the random source."""

from __future__ import annotations

import itertools
import os
import secrets

_process_salt = os.urandom(5).hex()
_sequence = itertools.count(int.from_bytes(os.urandom(3), "big"))


def new_request_id(now_ms: int) -> str:
    """Return `req_` + milliseconds + process salt + counter, all hexadecimal (40 characters).

    Args:
        now_ms: wall-clock milliseconds since the epoch; makes ids sort by arrival.
    """
    return f"req_{now_ms:012x}{_process_salt}{next(_sequence) & 0xFFFFFFFFFFFFFF:014x}"


def new_replica_id(deployment: str) -> str:
    """Return `<deployment>-<8 hexadecimal digits>`; unique over restarts, readable in listings."""
    return f"{deployment}-{secrets.token_hex(4)}"


def new_generation() -> str:
    """Return the name of one server run, used to tell a server's engines from its predecessor's."""
    return f"gen_{secrets.token_hex(8)}"


def new_api_key() -> str:
    """Return a client secret: `sk-stoker-` + 43 URL-safe characters (256 bits)."""
    return f"sk-stoker-{secrets.token_urlsafe(32)}"
