"""`densepath plan`: what memory a recipe needs, computed without weights, and whether it fits."""

from __future__ import annotations

import json
from collections.abc import Sequence

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
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.plan import plan_recipe, require_fit
    from densepath.planning.table import headline, plan_json, plan_table, verdict
    from densepath.terminal import say, show, terminal

    quiet_libraries()
    plan = plan_recipe(arguments, others)
    if arguments.json:
        print(json.dumps(plan_json(plan), indent=2))
    else:
        console = terminal()
        say(console, headline(plan))
        show(console, plan_table(plan))
        say(console, verdict(plan))
    require_fit(plan)
    return 0
