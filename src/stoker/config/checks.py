"""What the settings' types cannot say: rules that join several fields, on the declaration as written. Pure."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any

from stoker.config.builtin import BUILTIN_MODELS
from stoker.config.document import Path, Problem, walk
from stoker.config.sources import parse_source
from stoker.config.words import nearest, shape_at

SERVERLESS_ONLY = ("min_replicas", "max_replicas", "keep_alive")
DEDICATED_ONLY = ("replicas", "tenants")
_SECRET_KINDS = ("env:", "file:", "exec:")


def check(declared: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield every problem that joins fields; parts of a wrong type are left to the type check."""
    yield from _booleans_as_numbers(declared)
    models, deployments = _mapping(declared, "models"), _mapping(declared, "deployments")
    for name, model in models.items():
        if isinstance(model, Mapping):
            yield from _model(("models", name), model)
    for name, deployment in deployments.items():
        if isinstance(deployment, Mapping):
            path: Path = ("deployments", name)
            yield from _model_of(path, deployment, models)
            yield from _tier(path, deployment)
            yield from _engine(path, deployment)
    yield from _keys(declared, deployments)


def cautions(declared: Mapping[str, Any]) -> Iterator[Problem]:
    """Yield what is valid and yet probably not meant."""
    keys = [key for key in _list(declared, "keys") if isinstance(key, Mapping)]
    served = {str(key.get("tenant", "default")) for key in keys}
    for name, deployment in _mapping(declared, "deployments").items():
        tenants = _list(deployment, "tenants") if isinstance(deployment, Mapping) else []
        for index, tenant in enumerate(tenants):
            if keys and isinstance(tenant, str) and tenant not in served:
                known = ", ".join(sorted(served))
                text = f"no key under `keys` is of tenant {tenant}{nearest(tenant, served)} (their tenants: {known})"
                yield Problem(("deployments", name, "tenants", index), text)


def _mapping(value: Any, key: str) -> Mapping[str, Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return found if isinstance(found, Mapping) else {}


def _list(value: Any, key: str) -> list[Any]:
    found = value.get(key) if isinstance(value, Mapping) else None
    return list(found) if isinstance(found, list | tuple) else []


def _booleans_as_numbers(declared: Mapping[str, Any]) -> Iterator[Problem]:
    """pydantic reads `true` as 1; we do not."""
    for path, value in walk(declared):
        shape = shape_at(path) if isinstance(value, bool) else None
        if shape is not None and shape.annotation not in {bool, Any, str} and not shape.model:
            words = shape.words()
            if "number" in words or "dollars" in words:
                yield Problem(path, f"must be {words}, not {str(value).lower()}")


def _model(path: Path, model: Mapping[str, Any]) -> Iterator[Problem]:
    text = model.get("source")
    if not isinstance(text, str):
        return
    try:
        source = parse_source(text)
    except ValueError as exc:
        yield Problem((*path, "source"), str(exc))
        return
    is_plain = source.kind == "https" and text.startswith("http://")
    if is_plain and not (model.get("sha256") and model.get("allow_private") is True):
        text = "http:// is only for hosts of your own: use https://, or give `sha256` and `allow_private: true`"
        yield Problem((*path, "source"), text)


def _engine_kind(deployment: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    engine = _mapping(deployment, "engine")
    return str(engine.get("kind", "llama.cpp")), engine


def _is_whole_repository(text: str) -> bool:
    try:
        return not parse_source(text).path
    except ValueError:
        return False


def _model_of(path: Path, deployment: Mapping[str, Any], models: Mapping[str, Any]) -> Iterator[Problem]:
    name = deployment.get("model")
    kind, engine = _engine_kind(deployment)
    if not isinstance(name, str):
        return
    if name in models or name in BUILTIN_MODELS:
        source = str(_mapping(models, name).get("source", ""))
        if kind == "llama.cpp" and source.startswith("hf://") and _is_whole_repository(source):
            text = f"{source} is a whole repository, and llama.cpp needs one file of it: add the path of a .gguf file"
            yield Problem(("models", name, "source"), text)
        return
    command = " ".join(str(part) for part in _list(engine, "command"))
    if kind == "openai" and (command or engine.get("url")) and "{model}" not in command:
        return  # the server brings its own weights, and `model` is only what it calls them
    known = sorted({*models, *BUILTIN_MODELS})
    yield Problem((*path, "model"), f"there is no model {name}{nearest(name, known)} (models: {', '.join(known)})")


def _tier(path: Path, deployment: Mapping[str, Any]) -> Iterator[Problem]:
    tier = deployment.get("tier", "serverless")
    foreign, instead = {
        "serverless": (
            DEDICATED_ONLY,
            {"replicas": "`min_replicas` and `max_replicas`", "tenants": "`keys[].deployments`"},
        ),
        "dedicated": (SERVERLESS_ONLY, dict.fromkeys(SERVERLESS_ONLY, "`replicas`")),
    }.get(str(tier), ((), {}))
    other = "dedicated" if tier == "serverless" else "serverless"
    for key in foreign:
        if key in deployment:
            text = f"this is for {other} deployments, and this one is {tier}; remove it, or use {instead[key]}"
            yield Problem((*path, key), text)


def _engine(path: Path, deployment: Mapping[str, Any]) -> Iterator[Problem]:
    kind, engine = _engine_kind(deployment)
    at: Path = (*path, "engine")
    if kind == "openai" and not engine.get("command") and not engine.get("url"):
        yield Problem((*at, "kind"), "`kind: openai` needs `command` (a server to start) or `url` (one that runs)")
    if kind == "llama.cpp":
        for key in ("command", "url"):
            if key in engine:
                text = "this is for `kind: openai` and `kind: vllm`; for a llama-server of your own use `binary`"
                yield Problem((*at, key), text)
    elif "binary" in engine:
        text = f"this is for `kind: llama.cpp`, and this engine is `{kind}`; write the program in `command`"
        yield Problem((*at, "binary"), text)
    if engine.get("command") and engine.get("url"):
        yield Problem((*at, "url"), "give `command` (a server to start) or `url` (one that runs), not both")
    url = engine.get("url")
    if isinstance(url, str) and not url.startswith(("http://", "https://")):
        yield Problem((*at, "url"), "must begin with http:// or https://")


def _keys(declared: Mapping[str, Any], deployments: Mapping[str, Any]) -> Iterator[Problem]:
    keys = _list(declared, "keys")
    names = Counter(key.get("name") for key in keys if isinstance(key, Mapping) and isinstance(key.get("name"), str))
    for index, key in enumerate(keys):
        if not isinstance(key, Mapping):
            continue
        path: Path = ("keys", index)
        if names[key.get("name")] > 1:
            yield Problem((*path, "name"), f"{names[key.get('name')]} keys are named {key.get('name')}")
        if ("secret" in key) == ("sha256" in key):
            text = "gives both `secret` and `sha256`; keep one" if "secret" in key else "needs `secret` or `sha256`"
            yield Problem(path, text)
        secret = key.get("secret")
        if isinstance(secret, str) and not (secret.startswith(_SECRET_KINDS) and secret.partition(":")[2].strip()):
            text = "must be env:NAME, file:PATH or exec:PROGRAM; the key itself never stands in the file"
            yield Problem((*path, "secret"), text)
        for position, name in enumerate(_list(key, "deployments")):
            if isinstance(name, str) and name not in deployments:
                known = ", ".join(sorted(deployments)) or "none"
                text = f"there is no deployment {name}{nearest(name, deployments)} (deployments: {known})"
                yield Problem((*path, "deployments", position), text)
