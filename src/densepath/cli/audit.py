"""`densepath audit`: the demonstrations that a trained model finds least like expert behaviour."""

from __future__ import annotations

from collections.abc import Sequence

from densepath.cli.arguments import parse
from densepath.config.reward import AuditArguments

DESCRIPTION = (
    "Audit demonstrations: the rows and spans that the trained model finds least like expert behaviour come first; "
    "duplicates, over-long rows and cut-off ends are flagged."
)


def run(argv: Sequence[str]) -> int:
    """Parse, then run."""
    arguments, _ = parse(AuditArguments, argv, prog="densepath audit", description=DESCRIPTION)
    from densepath.models.quiet import quiet_libraries
    from densepath.pipeline.audit import run_audit_command
    from densepath.terminal import terminal

    quiet_libraries()
    run_audit_command(arguments, terminal())
    return 0
