"""`densepath eval`: sample completions of held-out prompts and check them with a program."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.training import EvalArguments

DESCRIPTION = "Sample completions of held-out prompts and check them with a program."


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, _ = parse(EvalArguments, argv, prog="densepath eval", description=DESCRIPTION)
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.eval_command import run_eval_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_eval_command(arguments, terminal())
    return 0
