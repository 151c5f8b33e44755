"""`densepath select`: which kept checkpoint of an SFT run makes the best reference."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.choice import SelectArguments

DESCRIPTION = (
    "Pick the reference: sweep over the checkpoints that an SFT run kept; signal-to-noise of the reward on held-out "
    "text, and agreement with preference pairs, altered answers or a verifier where there are any."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, _ = parse(SelectArguments, argv, prog="densepath select", description=DESCRIPTION)
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.choosing import run_select_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_select_command(arguments, terminal())
    return 0
