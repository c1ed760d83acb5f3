"""`stoker models pull|list|rm`: weights on this disk. Works with and without a server."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from stoker.cli import options
from stoker.cli.terminal import print_json, print_table, say, size
from stoker.cli.up import TerminalAnnouncer
from stoker.errors import NotFound

if TYPE_CHECKING:
    from stoker.config.settings import ModelSettings
    from stoker.models.store import ModelStore

app = typer.Typer(help="Weights: the catalogue and what is on this disk.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def pull(
    name: Annotated[str, typer.Argument(help="A model of the catalogue or the configuration, or a source.")],
    config: options.ConfigPath = None,
    sha256: Annotated[str | None, typer.Option(help="What it must hash to, for a source.")] = None,
    as_json: options.JSON = False,
) -> None:
    """Fetch a model and verify it."""
    settings = _find(name, config, sha256)
    file = asyncio.run(_store().pull(name, settings, progress=TerminalAnnouncer().progress))
    if as_json:
        facts = {"path": str(file.path), "sha256": file.sha256, "size_bytes": file.size_bytes}
        print_json({"name": name, "source": settings.source, **facts, "context_tokens": file.context_tokens})
    else:
        say(f"{name}: {size(file.size_bytes)}, sha256 {file.sha256}")


@app.command("list")
def list_(config: options.ConfigPath = None, as_json: options.JSON = False) -> None:
    """List what can be deployed, and which of it is here."""
    from stoker.models.catalogue import catalogue  # noqa: PLC0415 - pydantic

    here = _store().list()
    entries = catalogue(_configured(config))
    by_source = {model.source: model for model in here}
    rows: list[dict[str, Any]] = []
    for entry in entries.values():
        model = by_source.pop(entry.source, None)
        rows.append(
            {
                "name": entry.name,
                "source": entry.source,
                "state": "absent" if model is None else model.state,
                "size_bytes": None if model is None else model.size_bytes,
                "memory_bytes": entry.memory_bytes,
                "licence": entry.licence,
                "summary": entry.summary,
            }
        )
    for model in by_source.values():
        own = {key: value for key, value in asdict(model).items() if key in {"name", "source", "state", "size_bytes"}}
        rows.append({**own, "memory_bytes": None, "licence": model.licence, "summary": "not in the catalogue"})
    if as_json:
        print_json({"models": rows})
        return
    print_table(
        ("NAME", "HERE", "SIZE>", "MEMORY>", "LICENCE", "WHAT", "SOURCE"),
        (
            (
                row["name"],
                row["state"],
                size(row["size_bytes"]),
                size(row["memory_bytes"]),
                row["licence"] or "–",
                row["summary"],
                row["source"],
            )
            for row in rows
        ),
        empty="no models",
    )


@app.command()
def rm(name: Annotated[str, typer.Argument(help="A name, a source, or the beginning of a digest.")]) -> None:
    """Remove a model from this disk."""
    say(f"{name}: {size(_store().remove(name))} are free again")


def _store() -> ModelStore:
    from stoker.models.store import ModelStore, cache_dir  # noqa: PLC0415 - 0.4 s

    return ModelStore(cache_dir())


def _configured(config: Path | None) -> dict[str, ModelSettings]:
    from stoker.config.loading import load  # noqa: PLC0415 - pydantic

    return dict(load(options.config_path(config)).settings.models)


def _find(name: str, config: Path | None, sha256: str | None) -> ModelSettings:
    from stoker.config.settings import ModelSettings  # noqa: PLC0415 - pydantic
    from stoker.models.catalogue import catalogue  # noqa: PLC0415

    if "://" in name:
        return ModelSettings(source=name, sha256=sha256)
    models = _configured(config)
    entry = catalogue(models).get(name)
    if entry is None:
        known = ", ".join(sorted(catalogue(models)))
        raise NotFound(f"there is no model {name!r} (models: {known})", mend="give its source, or name it in the file")
    return models.get(name) or ModelSettings(source=entry.source, sha256=entry.sha256, licence=entry.licence)
