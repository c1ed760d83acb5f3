"""`stoker config check|schema|diff`."""

from __future__ import annotations

from typing import Any

import typer

from stoker.cli import options
from stoker.cli.terminal import BAD_INPUT, note, print_json, say
from stoker.errors import ConfigInvalid

app = typer.Typer(help="The configuration file.", no_args_is_help=True, rich_markup_mode=None)


@app.command()
def check(config: options.ConfigPath = None, env: options.Environment = None, as_json: options.JSON = False) -> None:
    """Print every problem of the file, with its line, and exit with 2 when there is one."""
    from stoker.config.loading import load  # noqa: PLC0415 - pydantic

    path = options.config_path(config)
    try:
        loaded = load(path, environment=env)
    except ConfigInvalid as error:
        if as_json:
            print_json({"path": _shown(path), "is_valid": False, "problems": list(error.problems), "warnings": []})
        else:
            for problem in error.problems:
                note(problem)
            note(f"{len(error.problems)} problem(s)" + (f"; {error.mend}" if error.mend else ""))
        raise typer.Exit(BAD_INPUT) from error
    if as_json:
        print_json({"path": _shown(path), "is_valid": True, "problems": [], "warnings": list(loaded.warnings)})
        return
    for warning in loaded.warnings:
        note(f"warning: {warning}")
    num_models, num_deployments = len(loaded.settings.models), len(loaded.settings.deployments)
    say(f"{_shown(path) or 'the embedded default'} is valid: {num_models} models, {num_deployments} deployments")


@app.command()
def schema() -> None:
    """Print the JSON Schema of the file, for editors."""
    from stoker.config.schema import json_schema  # noqa: PLC0415 - pydantic

    print_json(json_schema())


@app.command()
def diff(ctx: typer.Context, as_json: options.JSON = False) -> None:
    """Show how what runs differs from what the file says."""
    drift = options.client(ctx).get("/admin/config/diff")
    if as_json:
        print_json(drift)
        return
    if not drift["has_drift"]:
        say("no drift: what runs is what the file says")
    for change in drift["changes"]:
        say(f"{dotted(change['path'])}: file {shown(change['before'])}, runs {shown(change['after'])}")
    for override in drift["overrides"]:
        why = f" ({override['reason']})" if override["reason"] else ""
        say(f"  {override['deployment']} was changed by {override['author']} at {override['at']}{why}")
    if drift["unapplied"]:
        say(f"the file has {len(drift['unapplied'])} change(s) that were not applied: stoker apply")


def dotted(path: list[Any]) -> str:
    """Write keys as `deployments.chat.tier`. Pure."""
    return ".".join(str(part) for part in path)


def shown(value: Any) -> str:
    """Write a value of a configuration in one line; None is what is not there. Pure."""
    import json  # noqa: PLC0415

    return "absent" if value is None else json.dumps(value, ensure_ascii=False)


def _shown(path: object) -> str | None:
    return None if path is None else str(path)
