"""`densepath run`: the whole job on the user's model and data."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.run import RunArguments

DESCRIPTION = (
    "SFT -> reference checkpoints -> choice of the reference -> DPR -> held-out evaluation -> report. "
    "Called again on the same output_dir it goes on where it stopped."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then run the stages."""
    arguments, others = parse(
        RunArguments,
        argv,
        prog="densepath run",
        description=DESCRIPTION,
        passthrough={"sft_": "TRL's SFTConfig", "dpr_": "DPRConfig"},
    )
    from densepath.pipeline.run import run_pipeline

    run_pipeline(arguments, others)
    return 0
