"""`densepath plan`: what memory a recipe needs, computed without weights, and whether it fits."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from densepath.cli.arguments import parse
from densepath.cli.commands import RECIPE_KEYS
from densepath.config.run import PlanArguments

DESCRIPTION = (
    "What memory a recipe of densepath run needs on each GPU, or on the CPU, computed without weights. "
    "Exits with 2 and names the term that is too large when it cannot fit."
)


def run(argv: Sequence[str]) -> int:
    """Parse, plan, print; a plan that cannot fit is an error."""
    arguments, others = parse(
        PlanArguments,
        argv,
        prog="densepath plan",
        description=DESCRIPTION,
        passthrough=RECIPE_KEYS,
    )
    from densepath.data.outputs import check_outputs, models_read
    from densepath.io import write_json_atomic
    from densepath.models.hub import tell_model
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.plan import plan_recipe, require_fit
    from densepath.planning.architecture import known_configurations
    from densepath.planning.table import headline, plan_json, plan_table, verdict
    from densepath.terminal import say, show, terminal

    quiet_libraries()
    read = {"model_name_or_path": models_read(arguments.model_name_or_path)}
    check_outputs({"output_file": arguments.output_file}, read)
    if arguments.model_name_or_path not in known_configurations():
        tell_model("model_name_or_path", arguments.model_name_or_path, terminal(stderr=arguments.json))
    plan = plan_recipe(arguments, others)
    if arguments.output_file is not None:
        write_json_atomic(Path(arguments.output_file), plan_json(plan))
    if arguments.json:
        print(json.dumps(plan_json(plan), indent=2))
    else:
        console = terminal()
        say(console, headline(plan))
        show(console, plan_table(plan))
        say(console, verdict(plan))
    require_fit(plan)
    return 0
