"""`densepath diagnose`: will DPR help on this SFT run, before paying for it?"""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.choice import DiagnoseArguments

DESCRIPTION = (
    "Will DPR help? The reward of the SFT model's own samples and, against every reference, contrastive decoding as a "
    "preview of what DPR would converge to. Nothing is trained. Ends in a recommendation: a reference and beta, do "
    "not, or cannot be told."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, _ = parse(DiagnoseArguments, argv, prog="densepath diagnose", description=DESCRIPTION)
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.diagnose import run_diagnose_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_diagnose_command(arguments, terminal())
    return 0
