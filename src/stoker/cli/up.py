"""`stoker up`: starts the server and tells what it does meanwhile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from stoker.cli import options
from stoker.cli.terminal import clean, note, say, size
from stoker.errors import BadRequest

if TYPE_CHECKING:
    from stoker.config.effective import Change
    from stoker.models.fetching import Progress, ProgressReport


def up(
    ctx: typer.Context,
    config: options.ConfigPath = None,
    env: options.Environment = None,
    host: Annotated[str | None, typer.Option(help="Address to listen on; default: 127.0.0.1.")] = None,
    port: Annotated[int | None, typer.Option(min=0, max=65535, help="Port; default: 8080; 0: any free one.")] = None,
    state_dir: Annotated[Path | None, typer.Option(help="Where the ledger, logs and the token live.")] = None,
    workers: Annotated[int, typer.Option(min=1, help="Gateway processes; 1 for now.")] = 1,
) -> None:
    """Start Stoker. Ctrl-C drains it, a second one stops it."""
    if workers > 1:
        raise BadRequest(
            f"--workers {workers} is not possible yet: the gateway runs inside the server, and several of them would "
            "not share their limits",
            mend="leave it at 1",
        )
    from stoker.wiring import UpOptions, run_server  # noqa: PLC0415 - the whole server

    chosen = UpOptions(
        config=options.config_path(config),
        environment=env,
        host=host,
        port=port,
        state_dir=state_dir.expanduser().absolute() if state_dir is not None else options.state_dir(ctx),
    )
    run_server(chosen, TerminalAnnouncer())


class TerminalAnnouncer:
    """`wiring.Announcer` on a terminal: what matters on stdout, progress on stderr."""

    def __init__(self) -> None:
        self._last_shown = ("", "", -1)
        self.progress: Progress = self._show_progress

    def _show_progress(self, report: ProgressReport) -> None:
        """Show a download: one line that moves on a terminal, every tenth of it elsewhere."""
        share = None if not report.total_bytes else report.done_bytes / report.total_bytes
        is_terminal = sys.stderr.isatty()
        step = -1 if share is None else int(share * (100 if is_terminal else 10))
        if (report.name, report.phase, step) == self._last_shown:
            return
        is_same_line = is_terminal and self._last_shown[:2] == (report.name, report.phase)
        self._last_shown = (report.name, report.phase, step)
        total = f" of {size(report.total_bytes)} ({share:.0%})" if share is not None else ""
        line = clean(f"{report.name}: {report.phase} {size(report.done_bytes)}{total}")
        if is_terminal:
            start = "\r" if is_same_line else ""
            end = "\n" if share is not None and share >= 1 else ""
            print(f"{start}{line}\x1b[K", end=end, file=sys.stderr, flush=True)
        else:
            note(line)

    def warn(self, sentence: str) -> None:
        note(f"warning: {sentence}")

    def not_applied(self, changes: tuple[Change, ...]) -> None:
        """Say that the file was edited since it was applied; a restart alone changes nothing."""
        if changes:
            note(f"the configuration file has {len(changes)} change(s) that were not applied:")
            for change in changes:
                note(f"  {change}")
            note("  try: stoker apply")

    def ready(self, url: str, deployments: tuple[str, ...], state_dir: Path) -> None:
        """Say where the endpoint is and how to ask it."""
        model = deployments[0] if deployments else "MODEL"
        say(f"Stoker is ready at {url}/v1")
        say(f"  deployments  {', '.join(deployments) or 'none yet: stoker deploy'}")
        say(f"  state        {state_dir}")
        say(endpoint_help(url, model))
        sys.stdout.flush()

    def draining(self, timeout_s: float) -> None:
        note(f"draining: requests in flight have {timeout_s:.0f} s; Ctrl-C again stops at once")

    def stopped(self) -> None:
        note("stopped")


def endpoint_help(url: str, model: str) -> str:
    """Return a curl line and a Python line that ask a deployment. Pure."""
    body = f'{{"model": "{model}", "messages": [{{"role": "user", "content": "Hello"}}]}}'
    return (
        f"  curl         curl {url}/v1/chat/completions -H 'Content-Type: application/json' -d '{body}'\n"
        f"  python       openai.OpenAI(base_url='{url}/v1', api_key='local').chat.completions.create("
        f"model='{model}', messages=[{{'role': 'user', 'content': 'Hello'}}])"
    )
