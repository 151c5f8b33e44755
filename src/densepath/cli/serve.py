"""`densepath serve`: the dense reward over HTTP."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.pages import ServeArguments

DESCRIPTION = "Serve the dense reward over HTTP: /v1/score, /v1/rank, /health, /metrics, and a page at /docs."


def run(argv: Sequence[str]) -> int:
    """Parse, then serve until interrupted."""
    arguments, _ = parse(ServeArguments, argv, prog="densepath serve", description=DESCRIPTION)
    from densepath.serve import require_extra
    from densepath.terminal import terminal

    require_extra()
    from densepath.models.quiet import quiet_libraries
    from densepath.serve.command import run_serve_command

    quiet_libraries()
    return run_serve_command(arguments, terminal(stderr=True))
