"""What the pages say of the repository is so: keys, links, paths, names, targets and the configuration they show."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path
from typing import Annotated, Any

import pytest
from pydantic import BaseModel, TypeAdapter
from pydantic.fields import FieldInfo

from stoker.config import settings
from stoker.config.loading import load_text

ROOT = Path(__file__).parents[3]
SOURCE = ROOT / "src" / "stoker"
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]
TABLES: dict[str, type[BaseModel]] = {
    "## Top level": settings.Settings,
    "## server": settings.ServerSettings,
    "## node": settings.NodeSettings,
    "## models": settings.ModelSettings,
    "## deployments": settings.DeploymentSettings,
    "### engine": settings.EngineSettings,
    "### price": settings.TokenPriceSettings,
    "## keys": settings.KeySettings,
}

_FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+)$", re.MULTILINE)
_PATH = re.compile(r"(?<![\w/.:-])((?:src|tests)/[\w./-]*[\w/])")
_ROOM_FILE = re.compile(r"`((?:\w+/)*\w+\.py)(?:::([\w.]+))?`")
_ROW = re.compile(r"^\| `(\w+)` \|[^|]*\| ([^|]+?) \|", re.MULTILINE)


def name_of(page: Path) -> str:
    return str(page.relative_to(ROOT))


def section(heading: str) -> str:
    page = (ROOT / "docs" / "configuration.md").read_text()
    _, found, rest = page.partition(f"\n{heading}\n")
    assert found, heading
    return re.split(r"^#", rest, maxsplit=1, flags=re.MULTILINE)[0]


def test_every_settings_class_has_a_table() -> None:
    classes = {
        each
        for each in vars(settings).values()
        if isinstance(each, type) and issubclass(each, settings.Frozen) and each is not settings.Frozen
    }
    assert set(TABLES.values()) == classes


@pytest.mark.parametrize(("heading", "model"), TABLES.items(), ids=lambda value: str(getattr(value, "__name__", value)))
def test_every_key_is_described_in_its_order(heading: str, model: type[BaseModel]) -> None:
    assert [key for key, _ in _ROW.findall(section(heading))] == list(model.model_fields)


@pytest.mark.parametrize(("heading", "model"), TABLES.items(), ids=lambda value: str(getattr(value, "__name__", value)))
def test_every_default_is_as_described(heading: str, model: type[BaseModel]) -> None:
    for key, said in _ROW.findall(section(heading)):
        info = model.model_fields[key]
        default = info.get_default(call_default_factory=True)
        if said == "see below":
            assert isinstance(default, BaseModel), key
        elif said in {"required", "none"}:
            assert info.is_required() if said == "required" else default is None, key
        else:
            assert _read(info, said.strip("`")) == default, key


def _read(info: FieldInfo, text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    annotation: Any = Annotated[info.annotation, *info.metadata] if info.metadata else info.annotation
    return TypeAdapter(annotation).validate_python(value)


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_relative_link_leads_somewhere(page: Path) -> None:
    for target in _LINK.findall(_FENCE.sub("", page.read_text())):
        if "://" in target or target.startswith("mailto:"):
            continue
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), target
        if anchor:
            assert anchor in anchors(found), target


def anchors(page: Path) -> set[str]:
    headings = _HEADING.findall(_FENCE.sub("", page.read_text()))
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_path_of_the_repository_exists(page: Path) -> None:
    for path in _PATH.findall(page.read_text()):
        assert (ROOT / path).exists(), path


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_file_of_a_room_exists_and_holds_what_is_named(page: Path) -> None:
    for file, name in _ROOM_FILE.findall(page.read_text()):
        if "/" not in file and not name:
            continue  # spoken of in general, such as `ports.py`
        path = ROOT / file if file.startswith(("src/", "tests/", "bench/")) else SOURCE / file
        assert path.exists(), file
        assert not name or name in defined_in(path), f"{file}::{name}"


def defined_in(path: Path) -> set[str]:
    """Classes, functions and methods, these by their dotted names."""
    found: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            found.add(node.name)
        if isinstance(node, ast.ClassDef):
            inner = (each for each in node.body if isinstance(each, ast.FunctionDef | ast.AsyncFunctionDef))
            found.update(f"{node.name}.{each.name}" for each in inner)
    return found


def test_the_configuration_in_the_readme_is_valid_in_all_its_environments() -> None:
    blocks = re.findall(r"^```yaml\n(.*?)^```", (ROOT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    assert blocks
    for block in blocks:
        for environment in (None, "prod"):
            assert load_text(block, path=Path("README.md"), environment=environment).warnings == ()


def test_every_make_target_in_the_readme_exists() -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"\bmake ([a-z-]+)", " ".join(code_of(ROOT / "README.md"))))
    assert named
    assert named <= targets


def code_of(page: Path) -> list[str]:
    """Fenced blocks and code spans: in prose, `make` is a verb."""
    text = page.read_text()
    return [*_FENCE.findall(text), *re.findall(r"`([^`\n]+)`", _FENCE.sub("", text))]


def test_every_flag_that_stoker_sets_by_itself_is_described() -> None:
    from stoker.fleet.engines import llama_cpp

    page = (ROOT / "docs" / "engines.md").read_text()
    for flag in {**llama_cpp._COLD_START_FLAGS, **llama_cpp._ISOLATION_FLAGS, **llama_cpp._BATCH_FLAGS}:
        assert f"`{flag}`" in page, flag
