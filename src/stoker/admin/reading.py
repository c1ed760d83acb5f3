"""What a request to `/admin` says: its JSON body, its ETag, its author and its query. Reads the request's stream."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from typing import Any, TypeVar

import orjson
from pydantic import BaseModel, ConfigDict, ValidationError
from starlette.requests import Request

from stoker.admin.envelope import EtagMissing, UnsupportedMediaType
from stoker.config.settings import parse_duration_s
from stoker.errors import BadRequest, BodyTooLarge
from stoker.fleet.declaration import Author

MAX_BODY_BYTES = 256 * 2**10
MAX_REASON_CHARS = 500
_JSON_TYPES = frozenset({"application/json", "application/merge-patch+json"})
_AUTHOR = re.compile(r"^[a-z][a-z0-9-]{0,31}$")
_B = TypeVar("_B", bound="Body")


class Body(BaseModel):
    """A body whose unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid")


async def read_json(request: Request) -> dict[str, Any]:
    """Read the body of a state change.

    Raises:
        UnsupportedMediaType: it is not declared as JSON; a browser's plain form therefore changes nothing.
        BodyTooLarge: above 256 KiB.
        BadRequest: it is no JSON object.
    """
    declared = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if declared not in _JSON_TYPES:
        raise UnsupportedMediaType(
            f"the body must be JSON and is declared as {declared[:80] or 'nothing'!r}",
            mend="send `Content-Type: application/json`",
        )
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY_BYTES:
            raise BodyTooLarge(f"the body is larger than {MAX_BODY_BYTES} bytes")
    try:
        value = orjson.loads(bytes(body))
    except orjson.JSONDecodeError as exc:
        raise BadRequest(f"the body is not valid JSON: {exc}") from exc
    if not isinstance(value, dict):
        raise BadRequest("the body must be a JSON object")
    return value


async def read_body(request: Request, shape: type[_B]) -> _B:
    """Read the body and check it against its shape.

    Raises:
        As `read_json`; BadRequest names every field that is wrong.
    """
    value = await read_json(request)
    try:
        return shape.model_validate(value)
    except ValidationError as exc:
        wrong = [(".".join(str(part) for part in each["loc"]), each["msg"]) for each in exc.errors()]
        fields = ", ".join(shape.model_fields)
        raise BadRequest(
            "; ".join(f"{path or 'body'}: {message}" for path, message in wrong),
            param=wrong[0][0] or None,
            mend=f"the fields are {fields}",
        ) from exc


def split_settings(body: dict[str, Any], *, also: tuple[str, ...] = ()) -> tuple[dict[str, Any], dict[str, Any]]:
    """Take `reason` and the keys in `also` out of a body; the rest, or what stands under `settings`, are settings.

    Raises:
        BadRequest: settings stand in both places, or under `settings` is no object.
    """
    named = {key: body[key] for key in ("reason", *also) if key in body}
    rest = {key: value for key, value in body.items() if key not in named}
    if "settings" in rest:
        if len(rest) > 1:
            others = ", ".join(sorted(rest.keys() - {"settings"}))
            raise BadRequest(f"{others[:200]} stand beside `settings`", mend="put all settings in one place")
        rest = rest["settings"]
        if not isinstance(rest, dict):
            raise BadRequest("`settings` must be an object", param="settings")
    return named, rest


def author_of(request: Request, reason: object = "") -> Author:
    """Return who asks, by the header `x-stoker-author`, and why.

    Raises:
        BadRequest
    """
    name = request.headers.get("x-stoker-author", "admin")
    if not _AUTHOR.match(name):
        raise BadRequest("x-stoker-author must be a short name in lower case")
    if not isinstance(reason, str) or len(reason) > MAX_REASON_CHARS:
        raise BadRequest(f"`reason` must be text of at most {MAX_REASON_CHARS} characters", param="reason")
    return Author(name, reason)


def if_match(request: Request, *, is_required: bool) -> str | None:
    """Return the ETag that a change is based on; None for `*` and, where it is optional, without the header.

    Raises:
        EtagMissing
    """
    value = request.headers.get("if-match")
    if value is None:
        if is_required:
            raise EtagMissing(
                "this change needs the ETag that it is based on",
                mend="send the deployment's ETag as `If-Match`, or `If-Match: *` to change it whatever it is",
            )
        return None
    value = value.strip()
    return None if value == "*" else value.removeprefix("W/").strip('"')


def since_us(text: str | None, now: datetime, *, default_s: float) -> int:
    """Return a point in time as microseconds since the epoch: `24h` before now, or an ISO 8601 time (UTC assumed).

    Raises:
        BadRequest
    """
    if text is None or text == "":
        return int((now.timestamp() - default_s) * 1_000_000)
    try:
        seconds = parse_duration_s(text)
    except ValueError:
        try:
            moment = datetime.fromisoformat(text)
        except ValueError:
            raise BadRequest(
                f"{text[:60]!r} is neither a duration nor a time",
                mend="write 24h, 7d or 2026-11-21T08:00",
                param="since",
            ) from None
        return int((moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp() * 1_000_000)
    assert isinstance(seconds, float)
    return int((now.timestamp() - seconds) * 1_000_000)


def is_true(text: str | None) -> bool:
    """Read a flag in a query: present without a value, or 1, true, yes."""
    return text is not None and text.lower() in {"", "1", "true", "yes"}
