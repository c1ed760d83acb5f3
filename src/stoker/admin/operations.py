"""One table of operations, from which both the routes and the OpenAPI document come. Pure."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

Handler = Callable[[Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Query:
    """A query parameter, `name=description`."""

    name: str
    description: str


@dataclass(frozen=True, slots=True)
class Operation:
    """One method on one path.

    Attributes:
        body: shape of the JSON body; None without one. A class, or a ready schema.
        returns: what the success body holds, in words.
        errors: status → when.
        takes_if_match: `optional`, `required` or None.
    """

    method: str
    path: str
    handler: Handler
    summary: str
    returns: str
    success: int = 200
    body: type[BaseModel] | dict[str, Any] | None = None
    query: tuple[Query, ...] = ()
    errors: tuple[tuple[int, str], ...] = ()
    takes_if_match: str | None = None
    content_type: str = "application/json"


def routes(operations: Sequence[Operation]) -> list[Route]:
    """Return Starlette routes in the table's order."""
    return [Route(each.path, each.handler, methods=[each.method]) for each in operations]


def openapi(operations: Sequence[Operation], *, version: str, schemas: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI 3.1 document of the table.

    Args:
        schemas: named schemas that bodies refer to.
    """
    paths: dict[str, dict[str, Any]] = {}
    for each in operations:
        paths.setdefault(each.path.replace(":path}", "}"), {})[each.method.lower()] = _described(each)
    return {
        "openapi": "3.1.0",
        "info": {"title": "Stoker admin", "version": version},
        "security": [{"adminToken": []}],
        "paths": paths,
        "components": {
            "securitySchemes": {"adminToken": {"type": "http", "scheme": "bearer"}},
            "schemas": {"Error": _ERROR, **schemas},
        },
    }


_ERROR: dict[str, Any] = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "code": {"type": "string"},
                "param": {"type": ["string", "null"]},
                "mend": {"type": ["string", "null"], "description": "what the reader can do about it"},
                "source": {"const": "stoker"},
                "problems": {"type": "array", "items": {"type": "string"}},
                "conflicts": {"type": "array", "items": {"type": "object"}},
            },
        }
    },
}


def _described(operation: Operation) -> dict[str, Any]:
    described: dict[str, Any] = {
        "summary": operation.summary,
        "operationId": operation.handler.__name__,
        "parameters": [
            *(_parameter("path", name, "") for name in _path_names(operation.path)),
            *(_parameter("query", query.name, query.description) for query in operation.query),
        ],
        "responses": {
            str(operation.success): {
                "description": operation.returns,
                **({} if operation.success == 204 else {"content": {operation.content_type: {"schema": {}}}}),
            },
            **{str(status): _error(when) for status, when in ((401, "no admin token, or another"), *operation.errors)},
        },
    }
    if operation.takes_if_match is not None:
        parameter = _parameter("header", "If-Match", "the ETag that this change is based on, or *")
        described["parameters"].append({**parameter, "required": operation.takes_if_match == "required"})
    if operation.body is not None:
        schema = operation.body if isinstance(operation.body, dict) else operation.body.model_json_schema()
        described["requestBody"] = {"required": True, "content": {"application/json": {"schema": schema}}}
    return described


def _path_names(path: str) -> list[str]:
    return [part[1:-1].partition(":")[0] for part in path.split("/") if part.startswith("{")]


def _parameter(where: str, name: str, description: str) -> dict[str, Any]:
    return {
        "in": where,
        "name": name,
        "required": where == "path",
        "description": description,
        "schema": {"type": "string"},
    }


def _error(when: str) -> dict[str, Any]:
    return {
        "description": when,
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
