"""`densepath rank`: best of n: the completions of each prompt by falling dense reward."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.reward import RankArguments

DESCRIPTION = (
    "Best of n: order the completions of each prompt by their dense reward. Rows hold a prompt and completions, "
    "or one completion each, and are grouped by their prompt."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, _ = parse(RankArguments, argv, prog="densepath rank", description=DESCRIPTION)
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.ranking import run_rank_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_rank_command(arguments, terminal())
    return 0
