"""The pages for people name every command and every route."""

from __future__ import annotations

from pathlib import Path

import typer

from stoker.cli.main import app
from tests.unit.cli.conftest import Server

DOCS = Path(__file__).parents[3] / "docs"


def test_every_command_is_described() -> None:
    page = (DOCS / "cli.md").read_text()
    for name in typer.main.get_command(app).commands:  # type: ignore[attr-defined]
        assert f"`stoker {name}" in page, name


def test_every_route_is_described(server: Server) -> None:
    from stoker.cli.client import Client

    page = (DOCS / "admin.md").read_text()
    for path in Client(server.url, "token").get("/admin/openapi.json")["paths"]:
        assert path in page, path
