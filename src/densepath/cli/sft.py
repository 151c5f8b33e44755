"""`densepath sft`: supervised fine-tuning that keeps reference checkpoints at chosen shares of the samples."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.pipeline.config import SFTArguments

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
    from rich.console import Console

    from densepath.pipeline.run import quiet_libraries
    from densepath.pipeline.standalone import run_sft_command

    quiet_libraries()
    run_sft_command(arguments, others, Console())
    return 0
