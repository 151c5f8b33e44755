"""`densepath sft`: supervised fine-tuning that keeps reference checkpoints at chosen shares of the samples."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.training import SFTArguments

DESCRIPTION = "Supervised fine-tuning that keeps reference checkpoints at chosen shares of the samples."


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, others = parse(
        SFTArguments,
        argv,
        prog="densepath sft",
        description=DESCRIPTION,
        passthrough={"": "TRL's SFTConfig"},
    )
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.standalone import run_sft_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_sft_command(arguments, others, terminal())
    return 0
