"""Which requests belong to one conversation, so that they meet the same prefix cache. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any
from zlib import crc32

EXPLICIT_FIELDS = ("prompt_cache_key", "session_id", "conversation_id")
_OPENING_CHARS = 512  # of each of the first two messages: enough to tell conversations apart, cheap to hash


def session_key(tenant: str, named: bytes | None, fields: Mapping[str, Any]) -> str | None:
    """Return an affinity key that never joins two tenants, or None for a request without history.

    In order: (1) the name that the client gave in a header, (2) one of `EXPLICIT_FIELDS`, (3) a fingerprint of how
    the conversation opens: turns of one chat share their first messages.

    Args:
        tenant: the principal's tenant; part of the fingerprint.
        named: the value of the `x-stoker-session` header, None when absent.
        fields: the request's JSON object.
    """
    if named is not None:
        return _fingerprint(tenant, "h", named)
    for field in EXPLICIT_FIELDS:
        value = fields.get(field)
        if isinstance(value, str) and value:
            return _fingerprint(tenant, "f", value.encode("utf-8", "surrogatepass"))
    messages = fields.get("messages")
    if not isinstance(messages, list) or not messages:
        return None
    opening = ""
    for message in messages[:2]:
        content = message.get("content") if isinstance(message, dict) else None
        if isinstance(content, str):
            opening += content[:_OPENING_CHARS] + "\0"
    return _fingerprint(tenant, "m", opening.encode("utf-8", "surrogatepass"))


def _fingerprint(tenant: str, kind: str, value: bytes) -> str:
    # A hint, not a proof: two conversations of one tenant that collide merely share a slot's preference.
    return f"{tenant}/{kind}{crc32(value):08x}"
