"""`densepath purify`: the demonstrations sorted with the dense reward, and SFT on the better part of them."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.training import PurifyCommandArguments

DESCRIPTION = (
    "Finds the behaviours that demonstrations are made of with the dense reward of an SFT model against the model "
    "before it, and trains the SFT model again on the one that SFT should have learned. Writes model, kept.jsonl, "
    "dropped.jsonl and purification.json; keeps the SFT model where nothing says that another would be better."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, others = parse(
        PurifyCommandArguments,
        argv,
        prog="densepath purify",
        description=DESCRIPTION,
        passthrough={"": "TRL's SFTConfig"},
    )
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.purify import run_purify_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_purify_command(arguments, others, terminal())
    return 0
