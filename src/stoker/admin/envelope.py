"""Errors of `/admin` on the wire: the envelope of `/v1` with the mend as a field of its own. Pure."""

from __future__ import annotations

from typing import Any, Final

from starlette.responses import JSONResponse

from stoker.config.effective import Change
from stoker.config.effective import Conflict as FieldConflict
from stoker.errors import BadRequest, ConfigInvalid, StokerError, Unauthenticated
from stoker.fleet.declaration import ApplyRefused
from stoker.gateway.errors import STATUS_BY_CODE


class UnsupportedMediaType(BadRequest):
    code = "unsupported_media_type"


class EtagMissing(BadRequest):
    code = "etag_missing"


_STATUS_BY_CODE: Final[dict[str, tuple[int, str]]] = {
    **STATUS_BY_CODE,
    "apply_conflict": (409, "invalid_request_error"),
    "etag_mismatch": (412, "invalid_request_error"),
    "unsupported_media_type": (415, "invalid_request_error"),
    "etag_missing": (428, "invalid_request_error"),
}


def error_document(error: StokerError) -> tuple[int, dict[str, Any]]:
    """Return the status and the body for an error."""
    status, kind = _STATUS_BY_CODE.get(error.code, _STATUS_BY_CODE["internal"])
    is_internal = status == 500
    document: dict[str, Any] = {
        "message": "Stoker failed internally; its log has the details" if is_internal else error.message,
        "type": kind,
        "param": error.param,
        "code": error.code,
        "mend": error.mend,
        "source": "stoker",
    }
    if isinstance(error, ConfigInvalid):
        document["problems"] = list(error.problems)
    if isinstance(error, ApplyRefused):
        document["conflicts"] = [conflict_json(conflict) for conflict in error.conflicts]
    return status, {"error": document}


def error_response(error: StokerError) -> JSONResponse:
    """Return the whole answer for an error."""
    status, document = error_document(error)
    headers = {}
    if error.retry_after_s is not None:
        headers["retry-after"] = str(max(1, round(error.retry_after_s + 0.5)))
    if isinstance(error, Unauthenticated):
        headers["www-authenticate"] = 'Bearer realm="stoker admin"'
    return JSONResponse(document, status, headers)


def change_json(change: Change) -> dict[str, Any]:
    """Write one difference; the path is a list of keys."""
    return {"path": list(change.path), "before": change.before, "after": change.after}


def conflict_json(conflict: FieldConflict) -> dict[str, Any]:
    """Write one three-way conflict."""
    return {"path": list(conflict.path), "base": conflict.base, "file": conflict.file, "live": conflict.live}
