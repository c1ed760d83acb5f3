"""The `stoker` command: which groups there are, and how their errors leave."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperGroup

from stoker.cli import apply, chat, configuration, deploy, doctor, fleet, keys, logs, models, up, usage
from stoker.cli.terminal import exit_code, print_error, say
from stoker.errors import StokerError


class _Group(TyperGroup):
    """Turns Stoker's errors into two lines on stderr and an exit code."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except StokerError as error:
            print_error(error)
            raise typer.Exit(exit_code(error)) from error


# Plain help: rich's costs 0.1 s at each start.
app = typer.Typer(
    name="stoker",
    cls=_Group,
    help="One OpenAI-compatible endpoint over serverless and dedicated deployments.",
    epilog="Exit codes: 0 done, 1 failed, 2 bad input or configuration, 3 no server.",
    no_args_is_help=True,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from importlib.metadata import version  # noqa: PLC0415 - 20 ms that other commands do not need

        say(version("stoker"))
        raise typer.Exit


@app.callback()
def _root(
    ctx: typer.Context,
    state_dir: Annotated[
        Path | None,
        typer.Option(envvar="STOKER_STATE_DIR", help="State directory of the server to talk to."),
    ] = None,
    _version: Annotated[bool, typer.Option("--version", callback=_print_version, is_eager=True)] = False,
) -> None:
    ctx.obj = state_dir


for _command in (
    up.up,
    fleet.status,
    fleet.ps,
    deploy.deploy,
    fleet.move,
    fleet.scale,
    fleet.delete,
    logs.logs,
    chat.chat,
    usage.usage,
    apply.apply,
    doctor.doctor,
):
    app.command()(_command)
app.add_typer(models.app, name="models")
app.add_typer(keys.app, name="keys")
app.add_typer(configuration.app, name="config")


def main() -> None:
    """Run the command line; the process exits with one of `terminal`'s codes."""
    app()
