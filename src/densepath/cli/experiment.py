"""`densepath experiment`: methods x seeds x settings from one recipe, and one table with every control."""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.cli.commands import RECIPE_KEYS
from densepath.config.experiment import ExperimentArguments
from densepath.config.listed import EXPERIMENT

DESCRIPTION = (
    "Does it get better, against every control? Runs methods x seeds x settings from a recipe, several at once, "
    "chooses on validation, and compares on the test prompts with intervals over seeds. "
    "Called again on the same output_dir it goes on where it stopped."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then run the grid."""
    arguments, others = parse(
        ExperimentArguments,
        argv,
        prog="densepath experiment",
        description=DESCRIPTION,
        passthrough=RECIPE_KEYS,
        listed=EXPERIMENT,
    )
    from densepath.models.hub import tell_hub
    from densepath.pipeline.experiment import run_experiment
    from densepath.terminal import terminal

    tell_hub(arguments, terminal())
    run_experiment(arguments, others, command=shlex.join(["densepath", "experiment", *argv]))
    return 0
