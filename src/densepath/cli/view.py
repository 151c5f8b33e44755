"""`densepath view`: look at scored completions, or score texts that are typed in."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.pages import ViewArguments

DESCRIPTION = (
    "Look at completions token by token: densepath view scores.jsonl, or with two models to score texts that are "
    "typed in. Serves a local page, or writes one with --html_file."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then write the page or serve it until interrupted."""
    words = list(argv)
    if words and not words[0].startswith("-"):
        words = ["--scores_file", *words]
    arguments, _ = parse(ViewArguments, words, prog="densepath view", description=DESCRIPTION)
    from densepath.serve.view_command import run_view_command
    from densepath.terminal import terminal

    return run_view_command(arguments, terminal(stderr=arguments.html_file is None))
