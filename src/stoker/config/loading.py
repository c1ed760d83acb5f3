"""`stoker.yaml` → frozen settings, every problem reported at once with its key and line. Reads the file."""

from __future__ import annotations

import re
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path as FilePath
from typing import Any

from pydantic import ValidationError

from stoker.config.builtin import BUILTIN_MODELS, default_declaration
from stoker.config.checks import DEDICATED_ONLY, SERVERLESS_ONLY, cautions, check
from stoker.config.document import Document, Path, Problem, read_document
from stoker.config.patches import merge_patch
from stoker.config.settings import Settings
from stoker.config.words import from_pydantic, nearest
from stoker.errors import ConfigInvalid

MAX_FILE_BYTES = 4 * 2**20
_ENVIRONMENTS = "environments"
_ENVIRONMENT_NAME = re.compile(r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$")


@dataclass(frozen=True, slots=True)
class Loaded:
    """A configuration that is valid as a whole.

    Attributes:
        path: the file, None for the embedded default.
        environment: whose overlay was laid over it, None without one.
        declared: what the file declares with that overlay, as plain JSON values without `null`.
        warnings: sentences about what is valid and yet probably not meant.
    """

    path: FilePath | None
    environment: str | None
    declared: dict[str, Any]
    settings: Settings
    warnings: tuple[str, ...] = ()


def load(path: FilePath | None, *, environment: str | None = None) -> Loaded:
    """Read a configuration, or the embedded default when `path` is None.

    Every environment is checked, so that what is wrong with production is seen while developing.

    Args:
        environment: name of the overlay under `environments` to lay over the file.

    Raises:
        ConfigInvalid: with all problems, each beginning with `file:line` and the key.
    """
    if path is None:
        if environment is not None:
            raise ConfigInvalid(
                (f"there is no environment {environment}: no configuration file is in use",),
                mend="name a file with --config",
            )
        declared = default_declaration()
        return Loaded(None, None, declared, validate(declared))
    return load_text(_read(path), path=path, environment=environment)


def load_text(text: str, *, path: FilePath, environment: str | None = None) -> Loaded:
    """Do as `load` does with text that is already read; `path` is only named. Pure."""
    document = read_document(text)
    base, overlays, problems = _split(document)
    if environment is not None and environment not in overlays:
        known = ", ".join(overlays) or "none are declared"
        line = document.lines.get((_ENVIRONMENTS,))
        text_ = f"there is no environment {environment}{nearest(environment, overlays)} (environments: {known})"
        problems.append(Problem((_ENVIRONMENTS,), text_, line))
    alone = Document(base, document.lines)
    variants = {name: _lay_over(document, base, name, overlay) for name, overlay in overlays.items()}
    chosen = variants.get(environment, alone) if environment else alone
    if not any(problem.text.startswith("this is not valid YAML") for problem in problems):
        own = problems_of(alone.value)
        problems += (_placed(problem, alone) for problem in own if chosen is alone)
        for name, variant in variants.items():
            for problem in problems_of(variant.value):
                text = problem.text if problem in own else f"{problem.text} (environment {name})"
                problems.append(_placed(Problem(problem.path, text), variant))
    file = str(path)
    if problems:
        ordered = sorted(set(problems), key=lambda problem: (problem.line or 0, str(problem.path)))
        raise ConfigInvalid(tuple(dict.fromkeys(problem.sentence(file) for problem in ordered)))
    warnings = tuple(_placed(caution, chosen).sentence(file) for caution in cautions(chosen.value))
    return Loaded(path, environment, chosen.value, _settings(chosen.value), warnings)


def validate(declared: Mapping[str, Any]) -> Settings:
    """Check a declaration that has no file, such as a file's with runtime overrides laid over it. Pure.

    Raises:
        ConfigInvalid: with all problems, each beginning with the key.
    """
    if problems := problems_of(declared):
        raise ConfigInvalid(tuple(dict.fromkeys(problem.sentence(None) for problem in problems)))
    return _settings(declared)


def problems_of(declared: Mapping[str, Any]) -> list[Problem]:
    """Return all that is wrong with a declaration, without lines. Pure."""
    problems: list[Problem] = []
    try:
        Settings.model_validate(declared)
    except ValidationError as exc:
        problems += from_pydantic(exc)
    reported = {problem.path for problem in problems}
    return problems + [problem for problem in check(declared) if problem.path not in reported]


def drop_other_tier(base: Mapping[str, Any], patch: Mapping[str, Any]) -> dict[str, Any]:
    """Return `patch` for a deployment, with `null` for what only the tier that it leaves knows.

    A patch that moves a deployment to the other tier thereby works over any base; fields that the patch itself sets
    stay, and are errors if they belong to the tier that it leaves.
    """
    tier = patch.get("tier", "serverless")
    if "tier" not in patch or tier == base.get("tier", "serverless"):
        return dict(patch)
    foreign = SERVERLESS_ONLY if tier == "dedicated" else DEDICATED_ONLY
    return {**{key: None for key in foreign if key in base}, **patch}


def _read(path: FilePath) -> str:
    try:
        with path.open("rb") as file:
            content = file.read(MAX_FILE_BYTES + 1)
    except OSError as exc:
        mend = "create it, or start without --config to serve the embedded model"
        raise ConfigInvalid((f"{path}: cannot be read: {exc.strerror or exc}",), mend=mend) from exc
    if len(content) > MAX_FILE_BYTES:
        raise ConfigInvalid((f"{path}: larger than {MAX_FILE_BYTES // 2**20} MiB, which no configuration is",))
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = content.count(b"\n", 0, exc.start) + 1
        raise ConfigInvalid((f"{path}:{line}: this is not UTF-8 text",)) from exc


def _settings(declared: Mapping[str, Any]) -> Settings:
    """Build the settings; built-in models that deployments name are filled in."""
    models = dict(declared.get("models") or {})
    for deployment in (declared.get("deployments") or {}).values():
        name = deployment["model"]
        if name not in models and name in BUILTIN_MODELS:
            models[name] = BUILTIN_MODELS[name]
    return Settings.model_validate({**declared, "models": models})


def _split(document: Document) -> tuple[dict[str, Any], dict[str, dict[str, Any]], list[Problem]]:
    """Take `environments` out of the file; return the rest, the overlays that can be used, and the problems."""
    problems = list(document.problems)
    base = dict(document.value)
    found = base.pop(_ENVIRONMENTS, {})
    if not isinstance(found, dict):
        text = "must be names with an overlay each, such as `environments: {prod: {…}}`"
        problems.append(Problem((_ENVIRONMENTS,), text, document.lines.get((_ENVIRONMENTS,))))
        return base, {}, problems
    names = [*found, *(str(path[1]) for path in document.removed if len(path) == 2 and path[0] == _ENVIRONMENTS)]
    overlays: dict[str, dict[str, Any]] = {}
    for name in names:
        at: Path = (_ENVIRONMENTS, name)
        overlay = found.get(name, {})
        if not _ENVIRONMENT_NAME.match(name):
            problems.append(
                Problem(at, "an environment's name is letters, digits, `.`, `_` and `-`", document.line_of(at))
            )
        elif not isinstance(overlay, dict):
            problems.append(Problem(at, "an overlay holds the same keys as the file", document.line_of(at)))
        elif _ENVIRONMENTS in overlay:
            inner = (*at, _ENVIRONMENTS)
            problems.append(Problem(inner, "an environment cannot hold environments", document.line_of(inner)))
        else:
            overlays[name] = overlay
    return base, overlays, problems


def _lay_over(document: Document, base: dict[str, Any], name: str, overlay: dict[str, Any]) -> Document:
    """Lay an overlay over the file, values and line numbers alike."""
    prefix: Path = (_ENVIRONMENTS, name)
    patch: dict[str, Any] = deepcopy(overlay)
    for path in document.removed:
        if path[:2] == prefix and len(path) > 2:
            _set_nothing(patch, path[2:])
    deployments = patch.get("deployments")
    known = base.get("deployments")
    if isinstance(deployments, dict) and isinstance(known, dict):
        for deployment, change in deployments.items():
            if isinstance(change, dict) and isinstance(known.get(deployment), dict):
                deployments[deployment] = drop_other_tier(known[deployment], change)
    lines = dict(document.lines)
    lines.update({path[2:]: line for path, line in document.lines.items() if path[:2] == prefix and len(path) > 2})
    return Document(merge_patch(base, patch), lines)


def _set_nothing(patch: dict[str, Any], path: Path) -> None:
    """Write the `null` that the reader left out back into an overlay."""
    at: Any = patch
    for part in path[:-1]:
        at = at.get(part) if isinstance(at, dict) and isinstance(part, str) else None
    if isinstance(at, dict) and isinstance(path[-1], str):
        at[path[-1]] = None


def _placed(problem: Problem, document: Document) -> Problem:
    return Problem(problem.path, problem.text, document.line_of(problem.path))
