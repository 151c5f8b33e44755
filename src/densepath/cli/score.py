"""`densepath score`: grade every token of given completions: log pi_SFT - log pi_ref, in nats."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.reward import ScoreArguments

DESCRIPTION = "Grade every token of given completions: log pi_SFT - log pi_ref, in nats."


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, _ = parse(ScoreArguments, argv, prog="densepath score", description=DESCRIPTION)
    from densepath.models.quiet import quiet_libraries
    from densepath.scoring.job import run_score_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_score_command(arguments, terminal())
    return 0
