"""`densepath dpr`: dense-Path REINFORCE: improve an SFT model with the dense reward between it and a reference."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.training import DPRArguments

DESCRIPTION = "Dense-Path REINFORCE: improve an SFT model with the dense reward between it and a reference."


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, others = parse(
        DPRArguments,
        argv,
        prog="densepath dpr",
        description=DESCRIPTION,
        passthrough={"": "DPRConfig (TRL's GRPOConfig with beta, gamma, baseline, dense_reward)"},
    )
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.standalone import run_dpr_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_dpr_command(arguments, others, terminal())
    return 0
