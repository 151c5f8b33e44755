"""`densepath reward-eval`: is the reward any good? Labels against the dense reward and its baselines."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.reward import RewardEvalArguments

DESCRIPTION = (
    "Is the reward any good? Preference pairs, first-error data or altered numbers: the dense reward beside guessing, "
    "length, log pi_SFT and log pi_base, with intervals and paired differences."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, _ = parse(RewardEvalArguments, argv, prog="densepath reward-eval", description=DESCRIPTION)
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.uses import run_reward_eval_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_reward_eval_command(arguments, terminal())
    return 0
